"""Tar archives of samples: their members and index, what is noted of them, and how they are written."""

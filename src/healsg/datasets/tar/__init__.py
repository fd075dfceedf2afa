"""Tar archives of samples: members, index, notes, and packing."""

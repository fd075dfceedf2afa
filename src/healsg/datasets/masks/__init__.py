"""Masks of pictures: which belong to which, what their labels are, and outlines as masks."""

"""Synthetic images and volumes, generated on the fly: pure functions of (seed, index)."""

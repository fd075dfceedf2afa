"""Masks of images: pairing with images, label values, and outlines as masks."""

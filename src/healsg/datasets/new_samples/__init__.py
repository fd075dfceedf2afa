"""Samples that a trained network is to predict: files of anybody's, prepared as its own were."""

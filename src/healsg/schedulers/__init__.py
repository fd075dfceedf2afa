"""Schedulers: how the learning rate moves over a run. One file a kind: curves known in advance, and the plateau."""

"""Loggers of a run: the screen, the report, TensorBoard, Weights & Biases."""

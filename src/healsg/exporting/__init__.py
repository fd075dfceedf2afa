"""Export the network of a run as a folder that needs neither healsg nor, for ONNX, torch."""

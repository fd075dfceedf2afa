"""What the segmentation of drawn and real data gives, over seeds: ``python -m benchmarks.segmentation``."""

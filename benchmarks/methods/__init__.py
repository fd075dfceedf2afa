"""Each method's effect on real data: ``python -m benchmarks.methods``. A family of methods is a file of this folder."""

"""Sweeps: composing the jobs' configurations, and sharing data between jobs."""

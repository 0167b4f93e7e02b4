"""Measurements of speed: `python -m benchmarks.NAME` prints one JSON line."""

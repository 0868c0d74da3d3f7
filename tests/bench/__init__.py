"""Figures beside their bars: `python -m tests.bench table`."""

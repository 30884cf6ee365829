"""Intervals, tests and power of comparisons."""

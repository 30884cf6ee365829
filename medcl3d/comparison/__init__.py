"""Grids of runs and what can be said of them."""

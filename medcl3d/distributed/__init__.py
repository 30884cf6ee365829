"""Ranks, random seeds, precision and the environment of a run."""

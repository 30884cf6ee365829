"""Comparisons of arms: plan, run, analysis and report."""

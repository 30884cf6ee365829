"""Metrics of predictions and of features."""

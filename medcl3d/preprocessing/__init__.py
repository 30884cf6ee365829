"""Preparation of scans: reading, resampling, normalisation, writing a store."""

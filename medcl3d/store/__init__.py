"""Prepared scans: reading, splits, scan selection, content hashes."""

"""Validation of scans, manifests and stores, with a report page."""

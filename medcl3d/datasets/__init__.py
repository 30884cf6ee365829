"""Manifests of scans: columns, ids, pseudonyms, sources and public data sets."""

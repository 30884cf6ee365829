"""Geometry, keys, relations, batches, collections and errors that every package uses."""

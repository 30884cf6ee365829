"""Pretraining: configuration, compatibility checks, online probe, pictures of pairs."""

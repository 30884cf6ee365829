"""Slow implementations that follow the equations literally."""

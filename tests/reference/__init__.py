"""Slow versions that follow the equations letter by letter."""

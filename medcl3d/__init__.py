"""Contrastive pretraining on 3-D medical scans, with the choice of pairs as the thing one swaps."""

__version__ = "0.1.0"

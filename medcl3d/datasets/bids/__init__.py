"""BIDS: file names, tables and sidecars, label maps of derivatives."""

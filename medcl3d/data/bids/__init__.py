"""BIDS: names of files, tables and sidecars beside them, label maps of derivatives."""

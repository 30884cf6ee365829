"""Readers of scan collections, one module per source.

A source is a function of the folder that it reads. A source whose scans are not NIfTI files yet takes a
second folder and writes them there. If that folder is None (``prepare --check``), it writes nothing, and the
manifest lists the files that it would write.
"""

from medcl3d.config.registry import Registry

SOURCES = Registry("source", __name__, former="medcl3d.data.sources", owner="source {}")

"""Where scans come from: one origin a file.

A source is a function of the folder it reads; one whose scans are no files yet takes a second folder and writes them there.
Where that is None (``prepare --check``), it writes nothing, and the manifest is of the files that it would write.
"""

from medcl3d.registry import Registry

SOURCES = Registry("source", __name__)

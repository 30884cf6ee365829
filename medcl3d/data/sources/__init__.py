"""Where scans come from: one origin a file.

A source is a function of the folder it reads; one whose scans are no files yet takes a second folder and writes them there.
"""

from medcl3d.registry import Registry

SOURCES = Registry("source", __name__)

"""Where scans come from: one origin a file."""

from medcl3d.registry import Registry

SOURCES = Registry("source", __name__)

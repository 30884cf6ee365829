"""What makes a crop a view."""

from medcl3d.registry import Registry

VIEWS = Registry("view recipe", __name__)

"""View recipes: augmentations that turn a crop into a view."""

from medcl3d.registry import Registry

VIEWS = Registry("view recipe", __name__)

"""View recipes: augmentations that turn a crop into a view."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medcl3d.config.registry import Registry

if TYPE_CHECKING:
    from medcl3d.views.artefacts import torchio as torchio
    from medcl3d.views.random_contrast import random_contrast as random_contrast
    from medcl3d.views.recipes import ct as ct
    from medcl3d.views.recipes import mri as mri
    from medcl3d.views.recipes import none as none
    from medcl3d.views.recipes import shape as shape

VIEWS = Registry("view recipe", __name__)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """A registered class or function, imported on first use."""
        from medcl3d.config.lazy import registered_attribute

        return registered_attribute(VIEWS, name)


def __dir__() -> list[str]:
    from medcl3d.config.lazy import registered_attributes

    return sorted({*globals(), *registered_attributes(VIEWS)})

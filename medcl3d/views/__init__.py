"""View recipes: augmentations that turn a crop into a view."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from medcl3d.config.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from medcl3d.core.geometry import Triple
    from medcl3d.views.artefacts import torchio as torchio
    from medcl3d.views.contrast_maps import random_contrast as random_contrast
    from medcl3d.views.recipes import ViewResult
    from medcl3d.views.recipes import ct as ct
    from medcl3d.views.recipes import mri as mri
    from medcl3d.views.recipes import none as none
    from medcl3d.views.recipes import shape as shape

VIEWS = Registry("view recipe", __name__)


class ViewRecipe(Protocol):
    """The interface of a view recipe: drawing the parameters of a view, and applying those of a batch."""

    def draw(self, rng: np.random.Generator, shape: Triple) -> dict[str, np.ndarray]:
        """Draw the parameters of a view of `shape` voxels, with fixed keys and shapes so that they stack."""

    def voxel_map(self, parameters: dict[str, Tensor], shape: Triple, spacing_mm: Tensor) -> Tensor:
        """``Float64[N, 4, 4]`` from view voxel index to crop voxel index, without making the views."""

    def apply(
        self,
        voxels: Tensor,
        parameters: dict[str, Tensor],
        spacing_mm: Tensor,
        labels: Tensor | None = None,
    ) -> ViewResult:
        """Views of crops ``Float[N, C, D, H, W]``, and of label maps ``[N, D, H, W]``."""


@runtime_checkable
class Flips(Protocol):
    """A recipe that may flip axes."""

    @property
    def flip_probability(self) -> tuple[float, float, float]:
        """The probability of a flip of each axis (right, front, head)."""


def flip_probability_of(recipe: ViewRecipe) -> tuple[float, float, float]:
    """The probability of a flip of each axis; 0 for a recipe that does not have any."""
    return recipe.flip_probability if isinstance(recipe, Flips) else (0.0, 0.0, 0.0)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """A registered class or function, imported on first use."""
        return VIEWS.attribute(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *VIEWS.attributes()})

"""TorchIO's intensity transforms as a view recipe: what goes wrong in a scanner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast

import numpy as np
import torch
from pydantic import AfterValidator
from torch import Tensor

from medcl3d.config import choice_of
from medcl3d.registry import Choice
from medcl3d.types import Triple
from medcl3d.views import VIEWS
from medcl3d.views.recipes import Recipe, ViewResult

SEED = "torchio_seed"
MOVES_ALONE = Choice("shape")


def _known(transforms: tuple[dict[str, dict[str, Any]], ...]) -> tuple[dict[str, dict[str, Any]], ...]:
    from medcl3d.data.torchio_bridge import intensity_transforms

    intensity_transforms(transforms)
    return transforms


Transforms = Annotated[tuple[dict[str, dict[str, Any]], ...], AfterValidator(_known)]


@dataclass(frozen=True)
class WithTorchIO:
    """Another recipe, then TorchIO's transforms one view at a time, on the processor, each with its own seed."""

    first: Recipe
    transforms: tuple[Mapping[str, Mapping[str, Any]], ...]

    def draw(self, rng: np.random.Generator, shape: Triple) -> dict[str, np.ndarray]:
        """The first recipe's parameters, and the seed of TorchIO's."""
        return self.first.draw(rng, shape) | {SEED: np.asarray(rng.integers(2**62))}

    def voxel_map(self, parameters: dict[str, Tensor], shape: Triple, spacing_mm: Tensor) -> Tensor:
        """That of the first recipe: intensity transforms move nothing."""
        return self.first.voxel_map(parameters, shape, spacing_mm)

    def apply(self, voxels: Tensor, parameters: dict[str, Tensor], spacing_mm: Tensor, labels: Tensor | None = None) -> ViewResult:
        """Make views of crops, shapes as in `Recipe.apply`; labels see the first recipe alone."""
        from medcl3d.data.torchio_bridge import apply_transforms, intensity_transforms

        view = self.first.apply(voxels, {name: value for name, value in parameters.items() if name != SEED}, spacing_mm, labels)
        change = intensity_transforms(self.transforms)
        made = [
            apply_transforms(change, one, spacing, int(seed))
            for one, spacing, seed in zip(view.voxels.cpu(), spacing_mm.cpu().numpy(), parameters[SEED].tolist(), strict=True)
        ]
        return ViewResult(torch.stack(made).to(view.voxels), view.voxel_map, view.labels)


@VIEWS.register("torchio")
def torchio(*, transforms: Transforms, first: choice_of(VIEWS) = MOVES_ALONE) -> WithTorchIO:  # type: ignore[valid-type]
    """TorchIO's intensity transforms by name, with its own fields: motion, ghosting, spikes, bias fields.

    transforms  a list such as ``[RandomMotion: {degrees: 5, p: 0.3}, RandomBiasField: {p: 0.3}]``
    first       the recipe before them, which may move the voxels too; TorchIO's spatial transforms are refused, since a
                view has to know where its voxels lie

    They run on one view at a time, on the processor: expect a tenth of the views a second that `mri` makes.
    Source: Pérez-García et al. 2021, TorchIO.
    """
    recipe = cast(Choice, first)
    return WithTorchIO(VIEWS.build(recipe), tuple(transforms))

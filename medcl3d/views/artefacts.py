"""TorchIO's intensity transforms as a view recipe: artefacts of the acquisition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast

import numpy as np
import torch
from jaxtyping import Float, Float64, Shaped
from pydantic import AfterValidator
from torch import Tensor

from medcl3d.config.choices import choice_of
from medcl3d.config.field_types import Choice
from medcl3d.core.geometry import Triple
from medcl3d.views import VIEWS, ViewRecipe, flip_probability_of
from medcl3d.views.recipes import ViewResult

SEED = "torchio_seed"
SPATIAL_ONLY = Choice("shape")


def _known(transforms: tuple[dict[str, dict[str, Any]], ...]) -> tuple[dict[str, dict[str, Any]], ...]:
    from medcl3d.preprocessing.torchio_transforms import intensity_transforms

    intensity_transforms(transforms)
    return transforms


Transforms = Annotated[tuple[dict[str, dict[str, Any]], ...], AfterValidator(_known)]


@dataclass(frozen=True)
class WithTorchIO:
    """A recipe followed by TorchIO's transforms, one view at a time on the CPU, each with its own seed."""

    first: ViewRecipe
    transforms: tuple[Mapping[str, Mapping[str, Any]], ...]

    @property
    def flip_probability(self) -> tuple[float, float, float]:
        """That of the first recipe."""
        return flip_probability_of(self.first)

    def draw(self, rng: np.random.Generator, shape: Triple) -> dict[str, np.ndarray]:
        """Draw the first recipe's parameters and the seed of TorchIO's transforms."""
        return self.first.draw(rng, shape) | {SEED: np.asarray(rng.integers(2**62))}

    def voxel_map(
        self, parameters: dict[str, Shaped[Tensor, "N ..."]], shape: Triple, spacing_mm: Float[Tensor, "N 3"]
    ) -> Float64[Tensor, "N 4 4"]:
        """The map of the first recipe: intensity transforms do not move voxels."""
        return self.first.voxel_map(parameters, shape, spacing_mm)

    def apply(
        self,
        voxels: Float[Tensor, "N C D H W"],
        parameters: dict[str, Shaped[Tensor, "N ..."]],
        spacing_mm: Float[Tensor, "N 3"],
        labels: Shaped[Tensor, "N D H W"] | None = None,
    ) -> ViewResult:
        """Make views of crops, shapes as in `Recipe.apply`; only the first recipe changes labels."""
        from medcl3d.preprocessing.torchio_transforms import apply_transforms, intensity_transforms

        of_first = {name: value for name, value in parameters.items() if name != SEED}
        view = self.first.apply(voxels, of_first, spacing_mm, labels)
        transform = intensity_transforms(self.transforms)
        seeds = parameters[SEED].tolist()
        transformed = [
            apply_transforms(transform, one, spacing, int(seed))
            for one, spacing, seed in zip(view.voxels.cpu(), spacing_mm.cpu().numpy(), seeds, strict=True)
        ]
        return ViewResult(torch.stack(transformed).to(view.voxels), view.voxel_map, view.labels)


@VIEWS.register("torchio")
def torchio(*, transforms: Transforms, first: choice_of(VIEWS) = SPATIAL_ONLY) -> WithTorchIO:  # type: ignore[valid-type]
    """TorchIO's intensity transforms by name, with TorchIO's fields: motion, ghosting, spikes, bias fields.

    transforms  a list such as ``[RandomMotion: {degrees: 5, p: 0.3}, RandomBiasField: {p: 0.3}]``
    first       the recipe applied before them, which may move voxels; TorchIO's spatial transforms are
                refused, since the position of a view's voxels must be known

    They run on one view at a time, on the CPU: expect a tenth of the views per second of `mri`.
    Source: Pérez-García et al. 2021, TorchIO.
    """
    recipe = cast(Choice, first)
    return WithTorchIO(VIEWS.build(recipe), tuple(transforms))

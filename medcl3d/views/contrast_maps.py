"""Random contrasts: each view has its own intensity map, so that views share anatomy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

import numpy as np
import torch
from jaxtyping import Float, Float64, Shaped
from pydantic import Field
from torch import Tensor

from medcl3d.config.choices import choice_of
from medcl3d.config.field_types import Choice, Fraction
from medcl3d.core.device import to_device
from medcl3d.core.geometry import Triple
from medcl3d.views import VIEWS, ViewRecipe, flip_probability_of
from medcl3d.views.recipes import Fractions, ViewResult

LOOKUP = "lookup"
# Intensities of a view between these quantiles are mapped; outside, the map continues with its end values.
QUANTILES = (0.005, 0.995)
# Lowest and highest mapped intensity. Scans have a standard deviation of about 1 over the body.
RANGE = (-2.0, 2.0)


@dataclass(frozen=True)
class RandomContrast:
    """A random intensity map, then another recipe.

    The parameter ``lookup`` ``Float64[1 + 2K]`` of a view: 1 if the view is mapped, else 0; then positions
    and values in [0, 1] of the K = num_clusters * num_knots knots. Two knots at one position are a jump.
    """

    then: ViewRecipe
    num_knots: int = 8
    strength: tuple[float, float] = (0.5, 1.0)
    inversion_probability: float = 0.5
    num_clusters: int = 1
    probability: float = 1.0

    @property
    def flip_probability(self) -> tuple[float, float, float]:
        """That of the other recipe."""
        return flip_probability_of(self.then)

    def draw(self, rng: np.random.Generator, shape: Triple) -> dict[str, np.ndarray]:
        """Draw the parameters of the other recipe, then the map, with a fixed number of draws."""
        drawn = self.then.draw(rng, shape)
        chance, strength, inversion = rng.random(3)
        cuts = np.concatenate([[0.0], np.sort(rng.random(self.num_clusters - 1)), [1.0]])
        inner = np.sort(rng.random((self.num_clusters, self.num_knots - 2)), axis=1)
        uniform = rng.random((self.num_clusters, self.num_knots))
        within = np.pad(inner, ((0, 0), (1, 1)), constant_values=(0, 1))  # of a cluster's interval
        # Rounding must not put a knot behind the next one.
        positions = np.maximum.accumulate((cuts[:-1, None] + np.diff(cuts)[:, None] * within).ravel())
        weight = self.strength[0] + (self.strength[1] - self.strength[0]) * strength
        values = (1 - weight) * positions + weight * uniform.ravel()
        if inversion < self.inversion_probability:
            values = 1 - values
        mapped = [float(chance < self.probability)]
        return drawn | {LOOKUP: np.concatenate([mapped, positions, values])}

    def voxel_map(
        self, parameters: dict[str, Shaped[Tensor, "N ..."]], shape: Triple, spacing_mm: Float[Tensor, "N 3"]
    ) -> Float64[Tensor, "N 4 4"]:
        """The map of the other recipe: intensity maps do not move voxels."""
        return self.then.voxel_map(parameters, shape, spacing_mm)

    def apply(
        self,
        voxels: Float[Tensor, "N C D H W"],
        parameters: dict[str, Shaped[Tensor, "N ..."]],
        spacing_mm: Float[Tensor, "N 3"],
        labels: Shaped[Tensor, "N D H W"] | None = None,
    ) -> ViewResult:
        """Make views of crops, shapes as in `Recipe.apply`."""
        rest = {name: value for name, value in parameters.items() if name != LOOKUP}
        return self.then.apply(map_intensities(voxels, parameters[LOOKUP]), rest, spacing_mm, labels)


def map_intensities(
    voxels: Float[Tensor, "N C D H W"], lookup: Float[Tensor, "N _"]
) -> Float[Tensor, "N C D H W"]:
    """Crops ``[N, C, D, H, W]`` through the maps ``[N, 1 + 2K]`` of their views; rows with 0 are unchanged.

    Each channel is normalised by its own quantiles and goes through the same map. Equal intensities of a
    channel remain equal, so padding and background remain constant.
    """
    mapped = lookup[:, 0].cpu() != 0
    result = voxels.clone()
    for row in mapped.nonzero()[:, 0].tolist():
        positions, values = to_device(lookup[row, 1:].to(voxels.dtype), voxels.device).contiguous().chunk(2)
        channels = voxels[row].flatten(1)
        low, high = (_quantile(channels, q)[:, None] for q in QUANTILES)
        x = ((channels - low) / (high - low).clamp(min=torch.finfo(voxels.dtype).eps)).clamp(0, 1)
        f = RANGE[0] + (RANGE[1] - RANGE[0]) * _interpolate(x, positions, values)
        result[row] = f.view(voxels[row].shape)
    return result


def _quantile(channels: Float[Tensor, "C V"], fraction: float) -> Float[Tensor, " C"]:
    """``[C]``: the value of that rank among ``[C, V]``, not interpolated."""
    count = channels.shape[1]
    return channels.kthvalue(1 + round(fraction * (count - 1)), dim=1).values


def _interpolate(
    x: Float[Tensor, "C V"], positions: Float[Tensor, " K"], values: Float[Tensor, " K"]
) -> Float[Tensor, "C V"]:
    """The piecewise-linear function of knots ``[K]``, sorted from 0 to 1, at `x` in [0, 1].

    At a jump it has the value of the first of the two knots.
    """
    after = torch.searchsorted(positions, x).clamp(1, len(positions) - 1)
    width = positions[1:] - positions[:-1]
    slope = torch.where(width > 0, (values[1:] - values[:-1]) / width.clamp(min=1e-12), 0.0)
    # From the knot before x; rounding must not leave the values' range.
    before = after - 1
    share = x - positions[before]
    return (values[before] + slope[before] * share).clamp(0, 1)


@VIEWS.register("random_contrast")
def random_contrast(
    *,
    then: choice_of(VIEWS) = Choice("mri"),  # type: ignore[valid-type]
    num_knots: Annotated[int, Field(ge=2, le=64)] = 8,
    strength: Fractions = (0.5, 1.0),
    inversion_probability: Fraction = 0.5,
    num_clusters: Annotated[int, Field(ge=1, le=16)] = 1,
    probability: Fraction = 1.0,
) -> RandomContrast:
    """A random intensity map for each view, then another recipe: views of a sample share anatomy only.

    then                   the recipe applied after the map: geometry, blur, noise
    num_knots              knots of the piecewise-linear map of a view's intensities, normalised from its
                           0.5% quantile to its 99.5% quantile; the inner knots are uniform over this range
    strength               interval of r, uniform: the value of a knot is (1 - r) * position + r * u with u
                           uniform; with r = 1 the map is arbitrary, with r near 0 close to the identity
    inversion_probability  fraction of the maps that are inverted (1 - value)
    num_clusters           1: the map is continuous. More: the range is cut at uniform positions, and each
                           interval has num_knots knots of its own, with jumps in between
    probability            fraction of the views that are mapped; the others keep the scan's intensities

    Mapped intensities are between -2 and 2, in standard deviations of a scan's body. All channels of a view
    go through the same map. Equal intensities of a view remain equal: padding stays constant.
    Source: random contrasts as in anatomix (Dey et al., ICLR 2025, arXiv 2411.02372), SeqInv (arXiv
    2501.12057) and UAE (Bai et al., arXiv 2311.15111), as piecewise-linear lookups.
    """
    recipe = VIEWS.build(cast(Choice, then))
    return RandomContrast(recipe, num_knots, strength, inversion_probability, num_clusters, probability)

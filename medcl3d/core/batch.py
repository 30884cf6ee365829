"""Batches of views, with the points that the views of a sample share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from medcl3d.core.keys import Keys

REGION = "region_of_point"  # the column of the regions of points in `Keys.metadata`


@dataclass(frozen=True)
class Points:
    """Physical points shared by the views of each sample.

    position_mm  ``Float64[B, P, 3]`` world mm in the frame of the sample's scan
    key_mm       the positions in the keys of strategies (a placebo shuffles them), same shape
    body_mm      the positions in body coordinates, same shape
    valid        ``Bool[B, P]``: the point is inside the scan and inside every view
    region       ``Int64[B, P]``: the region of the point, -1: unknown (None: regions are not read)
    """

    position_mm: Float64[Tensor, "B P 3"]
    key_mm: Float64[Tensor, "B P 3"]
    body_mm: Float64[Tensor, "B P 3"]
    valid: Bool[Tensor, "B P"]
    region: Int64[Tensor, "B P"] | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Points:
        """Apply `function` to every tensor."""
        return Points(**{name: function(tensor) for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @staticmethod
    def cat(parts: Iterable[Points]) -> Points:
        """Points of several samples, one after the other."""
        tensors = [part._tensors() for part in parts]
        return Points(**{name: torch.cat([one[name] for one in tensors]) for name in tensors[0]})


@dataclass(frozen=True)
class ViewGroup:
    """The views of one role: they have one shape and go through the encoder together.

    voxels  ``Float[N, C, D, H, W]``, rows sorted by sample, then by view
    affine  ``Float64[N, 4, 4]`` from a view's voxel indices to world mm, augmentation included
    keys    one row per view
    """

    role: str
    voxels: Float[Tensor, "N C D H W"]
    affine: Float64[Tensor, "N 4 4"]
    keys: Keys

    def to(self, device: torch.device | str) -> ViewGroup:
        """The same views on another device."""
        return ViewGroup(self.role, self.voxels.to(device), self.affine.to(device), self.keys.to(device))


@dataclass(frozen=True)
class PairBatch:
    """One rank's samples of one step."""

    groups: tuple[ViewGroup, ...]
    points: Points | None = None

    @property
    def main(self) -> ViewGroup:
        """The group that every objective uses: the global views."""
        return self.groups[0]

    def to(self, device: torch.device | str) -> PairBatch:
        """The same batch on another device."""
        points = self.points and self.points.map(lambda tensor: tensor.to(device))
        return PairBatch(tuple(group.to(device) for group in self.groups), points)

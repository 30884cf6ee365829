"""Raw batches: crops before augmentation, with the parameters of their augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from medcl3d.core.batch import Points
from medcl3d.core.geometry import ViewSpec
from medcl3d.core.keys import Keys

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

D = TypeVar("D", bound="DataclassInstance")


@dataclass(frozen=True)
class RawGroup:
    """The raw views of one role, with the parameters of their augmentation.

    crops       ``Float[N, C, D, H, W]``
    affine      ``Float64[N, 4, 4]`` crop voxel index -> world mm
    spacing_mm  ``Float[N, 3]``
    parameters  of the view recipe, stacked
    views       the drawn views, for pictures
    """

    role: str
    crops: Float[Tensor, "N C D H W"]
    affine: Float64[Tensor, "N 4 4"]
    spacing_mm: Float[Tensor, "N 3"]
    parameters: dict[str, Shaped[Tensor, "N ..."]]
    keys: Keys
    views: tuple[ViewSpec, ...]

    def map(self, function: Callable[[Tensor], Tensor]) -> RawGroup:
        """Apply `function` to every tensor."""
        return replace(
            self,
            crops=function(self.crops),
            affine=function(self.affine),
            spacing_mm=function(self.spacing_mm),
            parameters={name: function(value) for name, value in self.parameters.items()},
            keys=self.keys.map(function),
        )

    def __getitem__(self, rows: slice) -> RawGroup:
        return replace(self.map(lambda tensor: tensor[rows]), views=self.views[rows])

    @staticmethod
    def cat(parts: Sequence[RawGroup]) -> RawGroup:
        """Concatenate the views of several samples."""
        names = parts[0].parameters
        return RawGroup(
            parts[0].role,
            crops=torch.cat([part.crops for part in parts]),
            affine=torch.cat([part.affine for part in parts]),
            spacing_mm=torch.cat([part.spacing_mm for part in parts]),
            parameters={name: torch.cat([part.parameters[name] for part in parts]) for name in names},
            keys=Keys.cat(part.keys for part in parts),
            views=tuple(view for part in parts for view in part.views),
        )


@dataclass(frozen=True)
class RawBatch:
    """The samples of one rank for one step: the global views first, then those of other roles."""

    groups: tuple[RawGroup, ...]
    points: Points | None = None

    @property
    def main(self) -> RawGroup:
        """The global views."""
        return self.groups[0]

    @property
    def keys(self) -> Keys:
        """The keys of all views, group after group."""
        return Keys.cat(group.keys for group in self.groups)

    def to(self, device: torch.device) -> RawBatch:
        """The batch on a device."""
        if device.type == "cpu":
            return self
        move = moving_to(device)
        return RawBatch(
            tuple(group.map(move) for group in self.groups), self.points and self.points.map(move)
        )

    def chunks(self, samples: int) -> Iterator[RawBatch]:
        """Split into batches of `samples` samples, in order; the last may have fewer. Nothing is copied."""
        ids = torch.unique_consecutive(self.main.keys.sample)
        for start in range(0, len(ids), samples):
            first, last = ids[start], ids[start : start + samples][-1]
            # Rows are sorted by sample in every group.
            ends = (
                (int((g.keys.sample < first).sum()), int((g.keys.sample <= last).sum())) for g in self.groups
            )
            groups = tuple(group[a:b] for group, (a, b) in zip(self.groups, ends, strict=True))

            def chunk(tensor: Tensor, start: int = start) -> Tensor:
                return tensor[start : start + samples]

            yield RawBatch(groups, self.points and self.points.map(chunk))

    @staticmethod
    def cat(samples: Sequence[RawBatch]) -> RawBatch:
        """Concatenate samples with the same roles into one batch."""
        groups = zip(*(sample.groups for sample in samples), strict=True)
        points = [sample.points for sample in samples if sample.points is not None]
        return RawBatch(
            tuple(RawGroup.cat(parts) for parts in groups), Points.cat(points) if points else None
        )


def on_device(batch: D, device: torch.device) -> D:
    """A dataclass with its tensors and dictionaries of tensors on a device."""
    move = moving_to(device)
    moved: dict[str, Any] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            moved[field.name] = move(value)
        elif isinstance(value, dict):
            moved[field.name] = {name: move(tensor) for name, tensor in value.items()}
    return replace(batch, **moved)


def moving_to(device: torch.device) -> Callable[[Tensor], Tensor]:
    """A function that moves a tensor to a device, from pinned memory without waiting."""

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    return move

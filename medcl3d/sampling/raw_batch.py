"""Raw batches: crops before augmentation, with the parameters of their augmentation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from medcl3d.core.batch import Points
from medcl3d.core.device import to_device
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
    on_host     the keys on the CPU, if the crops and `keys` are on another device

    Everything but crops and keys stays on the CPU, which decides how each view is augmented.
    """

    role: str
    crops: Float[Tensor, "N C D H W"]
    affine: Float64[Tensor, "N 4 4"]
    spacing_mm: Float[Tensor, "N 3"]
    parameters: dict[str, Shaped[Tensor, "N ..."]]
    keys: Keys
    views: tuple[ViewSpec, ...]
    on_host: Keys | None = None

    @property
    def host_keys(self) -> Keys:
        """The keys, to be read without waiting for a device."""
        return self.keys if self.on_host is None else self.on_host

    def to(self, device: torch.device) -> RawGroup:
        """The group with crops and keys on a device."""
        return replace(
            self, crops=to_device(self.crops, device), keys=self.keys.to(device), on_host=self.host_keys
        )

    def __getitem__(self, rows: slice) -> RawGroup:
        return replace(
            self,
            crops=self.crops[rows],
            affine=self.affine[rows],
            spacing_mm=self.spacing_mm[rows],
            parameters={name: value[rows] for name, value in self.parameters.items()},
            keys=self.keys[rows],
            views=self.views[rows],
            on_host=self.on_host and self.on_host[rows],
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
        points = self.points and self.points.map(lambda tensor: to_device(tensor, device))
        return RawBatch(tuple(group.to(device) for group in self.groups), points)

    def pin_memory(self) -> RawBatch:
        """The batch with crops in pinned memory, as the loader calls it; the rest is pinned when copied."""
        return replace(self, groups=tuple(pinned(group, "crops") for group in self.groups))

    def chunks(self, samples: int) -> Iterator[RawBatch]:
        """Split into batches of `samples` samples, in order; the last may have fewer. Nothing is copied."""
        ids = torch.unique_consecutive(self.main.host_keys.sample)
        for start in range(0, len(ids), samples):
            first, last = ids[start], ids[start : start + samples][-1]
            # Rows are sorted by sample in every group.
            ends = (
                (int((own < first).sum()), int((own <= last).sum()))
                for own in (group.host_keys.sample for group in self.groups)
            )
            groups = tuple(group[a:b] for group, (a, b) in zip(self.groups, ends, strict=True))

            def chunk(tensor: Tensor, start: int = start) -> Tensor:
                return tensor[start : start + samples]

            yield RawBatch(groups, self.points and self.points.map(chunk))


def on_device(batch: D, device: torch.device, *names: str) -> D:
    """A dataclass with the tensors of some fields on a device."""
    return replace(batch, **{name: to_device(getattr(batch, name), device) for name in names})


def pinned(batch: D, *names: str) -> D:
    """A dataclass with the tensors of some fields in pinned memory."""
    return replace(batch, **{name: getattr(batch, name).pin_memory() for name in names})

"""The words all other files speak: boxes, views, keys, relations, batches and features.

Axes are always ``B C D H W``; voxel indices are (d, h, w) of a scan stored in RAS+ order, so that
d, h, w run to the patient's right, front and head on a scan that is not oblique. World coordinates
are RAS+ millimetres. Ids are integers that a `Collection` hands out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch import Tensor

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Box:
    """Voxels ``start <= index < start + size`` of a stored scan. It may reach past the scan's border."""

    start: Triple
    size: Triple

    @property
    def stop(self) -> Triple:
        """The first index past the box, per axis."""
        d, h, w = (a + b for a, b in zip(self.start, self.size, strict=True))
        return d, h, w

    @property
    def center(self) -> np.ndarray:
        """``Float64[3]`` voxel coordinates of its middle."""
        return np.array(self.start) + (np.array(self.size) - 1) / 2


@dataclass(frozen=True)
class ViewSpec:
    """One view to be made: which part of which scan, what it is for, and the grid it is resampled to.

    `role` groups views that one forward pass takes together ("global", "local"); `shape` is the
    grid of the view in voxels (default: the box's own size, so nothing is resampled). `told` is the box
    that strategies are told, where a placebo says another than the one that is read.
    """

    scan: int
    box: Box
    role: str = "global"
    shape: Triple | None = None
    told: Box | None = None

    @property
    def out_shape(self) -> Triple:
        """The grid of the view in voxels."""
        return self.shape or self.box.size


@dataclass(frozen=True)
class Keys:
    """What a strategy may know of the things in a batch, one row a thing (a view, or a point of one).

    Ids are int64 ``[N]``, -1 where there is none; numbers are float64, NaN where missing (an id as
    a float32 would lose its last digits, a position its millimetres).

    sample, view    which sample of the run the thing comes from, which of its views
    scan, frame     scans with one frame share world millimetres; across frames they mean nothing
    patient, modality, label
    session_days    day of the visit, from the patient's first
    center_mm       ``[N, 3]`` centre of the view's box, world mm
    size_mm         ``[N, 3]`` extent of the box along the scan's own axes
    axes            ``[N, 3, 3]`` columns are the scan's axes as unit vectors in world coordinates, sheared if the scan is
    body            ``[N, 3]`` position in body coordinates, mm (see `core/body_coordinates.py`)
    fraction        ``[N, 3]`` position along the scan's axes, 0 and 1 where its body begins and ends
    point           id of a point within its sample, -1 for views
    position_mm     ``[N, 3]`` world mm of a point, NaN for views
    metadata        column name -> ``[N]``; categories as codes
    linked          columns that a strategy's `link` added
    """

    sample: Tensor
    view: Tensor
    scan: Tensor
    frame: Tensor
    patient: Tensor
    modality: Tensor
    label: Tensor
    session_days: Tensor
    center_mm: Tensor
    size_mm: Tensor
    axes: Tensor
    body: Tensor
    fraction: Tensor
    point: Tensor
    position_mm: Tensor
    metadata: dict[str, Tensor] = field(default_factory=dict)
    linked: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.sample)

    def map(self, function: Callable[[Tensor], Tensor]) -> Keys:
        """Apply `function` to every column."""
        columns = {f.name: function(getattr(self, f.name)) for f in fields(self) if f.name not in ("metadata", "linked")}
        return Keys(
            **columns,
            metadata={k: function(v) for k, v in self.metadata.items()},
            linked={k: function(v) for k, v in self.linked.items()},
        )

    def __getitem__(self, rows: slice | Tensor) -> Keys:
        return self.map(lambda column: column[rows])

    def to(self, device: torch.device | str) -> Keys:
        """The same keys on another device."""
        return self.map(lambda column: column.to(device))

    def column(self, name: str) -> Tensor:
        """A column of the manifest as ``Float64[N]``: numbers, or codes of ids and categories; NaN where missing."""
        own = {"class": self.label, "patient": self.patient, "modality": self.modality, "frame": self.frame}
        if name in own:
            return torch.where(own[name] < 0, torch.nan, own[name].double())
        return self.session_days if name == "session_days" else self.metadata[name]

    def same_thing(self, other: Keys) -> Tensor:
        """``Bool[N, M]``: row and column are one and the same view, or one point of one view."""
        same = self.sample[:, None] == other.sample
        same &= self.view[:, None] == other.view
        return same & (self.point[:, None] == other.point)

    def matrix(self) -> Tensor:
        """All columns side by side as ``Float64[N, C]``, the form in which ranks exchange them."""
        parts: list[Tensor] = []

        def keep(column: Tensor) -> Tensor:
            parts.append(column.reshape(len(self), column.shape[1:].numel()).double())
            return column

        self.map(keep)
        return torch.cat(parts, dim=1)

    def with_matrix(self, matrix: Tensor) -> Keys:
        """Keys of this layout with the rows of a `matrix` that another rank made."""
        taken = 0

        def read(column: Tensor) -> Tensor:
            nonlocal taken
            width = column.shape[1:].numel()
            part = matrix[:, taken : taken + width]
            taken += width
            return part.reshape(len(matrix), *column.shape[1:]).to(column.dtype)

        return self.map(read)

    @staticmethod
    def cat(parts: Iterable[Keys]) -> Keys:
        """Rows of several keys of one layout, one after the other."""
        parts = list(parts)
        return parts[0].with_matrix(torch.cat([part.matrix() for part in parts]))


@dataclass(frozen=True)
class Relation:
    """How rows and columns relate: attracted, repelled, ignored.

    positive  ``Float[N, M]`` in [0, 1], attraction P
    negative  ``Float[N, M]`` >= 0, repulsion M
    budget    ``Float[N, M]`` or None: a distance that a pair may keep
    """

    positive: Tensor
    negative: Tensor
    budget: Tensor | None = None


def related(rows: Keys, cols: Keys, positive: Tensor, negative: Tensor | None = None) -> Relation:
    """A relation in which nothing is related to itself; what is not said to repel repels by 1 - P.

    positive, negative: ``[N, M]``, bool or float.
    """
    other = ~rows.same_thing(cols)
    positive = positive.to(torch.float32) * other
    negative = (1 - positive if negative is None else negative.to(torch.float32)) * other
    return Relation(positive, negative)


Relate = Callable[[Keys, Keys, "Tensor | None"], Relation]


@dataclass(frozen=True)
class Points:
    """Physical points shared by the views of each sample.

    position_mm  ``Float64[B, P, 3]`` world mm in the frame of the sample's scan
    key_mm       the positions that strategies are told (a placebo shuffles them), same shape
    body_mm      the positions in body coordinates, same shape
    valid        ``Bool[B, P]``: the point lies inside the scan and inside every view
    """

    position_mm: Tensor
    key_mm: Tensor
    body_mm: Tensor
    valid: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Points:
        """Apply `function` to every tensor."""
        return Points(*(function(getattr(self, f.name)) for f in fields(self)))

    @staticmethod
    def cat(parts: Iterable[Points]) -> Points:
        """Points of several samples, one after the other."""
        parts = list(parts)
        return Points(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Points)))


@dataclass(frozen=True)
class ViewGroup:
    """The views of one role: they have one shape and go through the encoder together.

    voxels  ``Float[N, C, D, H, W]``, rows sorted by sample, then by view
    affine  ``Float64[N, 4, 4]`` from a view's voxel indices to world mm, augmentation included
    keys    one row a view
    """

    role: str
    voxels: Tensor
    affine: Tensor
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


@dataclass(frozen=True)
class Features:
    """What a network says of a batch of volumes.

    pooled   ``[B, F]``
    maps     feature maps ``[B, C_i, D_i, H_i, W_i]``, finest first
    decoded  the decoder's map at full resolution ``[B, C, D, H, W]``, where there is a decoder
    """

    pooled: Tensor
    maps: tuple[Tensor, ...]
    decoded: Tensor | None = None


@dataclass(frozen=True)
class Rows:
    """Vectors that each depend on their own sample alone, and what is known of each.

    z     ``Float[N, D]``
    keys  one row a vector
    """

    z: Tensor
    keys: Keys

    def __getitem__(self, chosen: slice | Tensor) -> Rows:
        return Rows(self.z[chosen], self.keys[chosen])

    @staticmethod
    def cat(parts: Iterable[Rows]) -> Rows:
        """Rows of several chunks of a batch, one after the other."""
        parts = list(parts)
        return Rows(torch.cat([part.z for part in parts]), Keys.cat(part.keys for part in parts))


Embedded = dict[str, Rows]
"""What an objective's loss needs of a batch, by name: `online` rows carry a gradient, others what else it compares with."""


@dataclass(frozen=True)
class Loss:
    """What an objective returns: the value to descend, and numbers to log (already global)."""

    value: Tensor
    metrics: dict[str, Tensor]


def triple(value: np.ndarray | Iterable[int]) -> Triple:
    """Three integers as a tuple."""
    d, h, w = (int(v) for v in value)
    return d, h, w

"""Keys: what strategies know of each item of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields

import torch
from jaxtyping import Bool, Float64, Int64, Real, Shaped
from torch import Tensor

from medcl3d.core.device import to_device

ARE_VIEWS = "are_views"
"""Attribute of a column of points: whether all items are views, so that it need not be read."""


@dataclass(frozen=True)
class Keys:
    """What a strategy may read of the items of a batch, one row per item (a view, or a point of one).

    Ids are int64 ``[N]``, -1 if absent; numbers are float64, NaN if missing (an id as a float32 would
    lose its last digits, a position its millimetres).

    sample, view    which sample of the run the item comes from, which of its views
    scan, frame     scans with one frame share world millimetres; across frames they mean nothing
    patient, modality, label
    session_days    day of the visit, from the patient's first
    center_mm       ``[N, 3]`` centre of the view's box, world mm
    size_mm         ``[N, 3]`` extent of the box along the scan's own axes
    axes            ``[N, 3, 3]`` columns are the scan's axes as unit vectors in world coordinates, sheared if
                    the scan is
    body            ``[N, 3]`` position in body coordinates, mm (see `core/body_coordinates.py`)
    fraction        ``[N, 3]`` position along the scan's axes, 0 and 1 where its body begins and ends
    point           id of a point within its sample, -1 for views
    position_mm     ``[N, 3]`` world mm of a point, NaN for views
    metadata        column name -> ``[N]``; categories as codes
    linked          columns that a strategy's `link` added
    """

    sample: Int64[Tensor, " N"]
    view: Int64[Tensor, " N"]
    scan: Int64[Tensor, " N"]
    frame: Int64[Tensor, " N"]
    patient: Int64[Tensor, " N"]
    modality: Int64[Tensor, " N"]
    label: Int64[Tensor, " N"]
    session_days: Float64[Tensor, " N"]
    center_mm: Float64[Tensor, "N 3"]
    size_mm: Float64[Tensor, "N 3"]
    axes: Float64[Tensor, "N 3 3"]
    body: Float64[Tensor, "N 3"]
    fraction: Float64[Tensor, "N 3"]
    point: Int64[Tensor, " N"]
    position_mm: Float64[Tensor, "N 3"]
    metadata: dict[str, Real[Tensor, " N"]] = field(default_factory=dict)
    linked: dict[str, Shaped[Tensor, "N ..."]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.sample)

    def map(self, function: Callable[[Tensor], Tensor]) -> Keys:
        """Apply `function` to every column."""
        columns = {
            f.name: function(getattr(self, f.name))
            for f in fields(self)
            if f.name not in ("metadata", "linked")
        }
        keys = Keys(
            **columns,
            metadata={k: function(v) for k, v in self.metadata.items()},
            linked={k: function(v) for k, v in self.linked.items()},
        )
        return keys if (known := self._known_views) is None else keys.marked(known)

    @property
    def _known_views(self) -> bool | None:
        """Whether all items are views; None if the column must be read."""
        return getattr(self.point, ARE_VIEWS, None)

    def marked(self, are_views: bool) -> Keys:
        """These keys, of items that are known to be views, or known to be points."""
        setattr(self.point, ARE_VIEWS, are_views)  # of the tensor, so that other points lose it
        return self

    def __getitem__(self, rows: slice | Shaped[Tensor, " _"]) -> Keys:
        return self.map(lambda column: column[rows])

    def to(self, device: torch.device | str) -> Keys:
        """The same keys on another device, in one copy."""
        if torch.device(device).type == "cpu" or self.sample.device.type != "cpu":
            return self.map(lambda column: column.to(device))
        return self.with_matrix(to_device(self.matrix(), device)).marked(self.are_views)

    def column(self, name: str) -> Float64[Tensor, " N"]:
        """A column of the manifest as ``Float64[N]``: numbers, or codes of ids and categories; NaN if
        missing.
        """
        own = {"class": self.label, "patient": self.patient, "modality": self.modality, "frame": self.frame}
        if name in own:
            return torch.where(own[name] < 0, torch.nan, own[name].double())
        return self.session_days if name == "session_days" else self.metadata[name]

    @property
    def are_views(self) -> bool:
        """Whether all items are views, not points."""
        known = self._known_views
        return bool((self.point < 0).all()) if known is None else known

    def same_item(self, other: Keys) -> Bool[Tensor, "N M"]:
        """``Bool[N, M]``: row and column are one and the same view, or one point of one view."""
        same = self.sample[:, None] == other.sample
        # View and point in one number, since comparing all pairs takes time; both are below 2^31.
        own, others = ((keys.view << 32) + keys.point for keys in (self, other))
        return same & (own[:, None] == others)

    def matrix(self) -> Float64[Tensor, "N _"]:
        """All columns side by side as ``Float64[N, C]``, the form in which ranks exchange them."""
        parts: list[Tensor] = []

        def keep(column: Tensor) -> Tensor:
            parts.append(column.reshape(len(self), column.shape[1:].numel()).double())
            return column

        self.map(keep)
        return torch.cat(parts, dim=1)

    def with_matrix(self, matrix: Float64[Tensor, "N _"]) -> Keys:
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

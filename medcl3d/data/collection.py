"""The collection: the manifest with the geometry of what is stored, which is all that strategies see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch

from medcl3d.data.columns import ID_COLUMNS, PATH_COLUMNS
from medcl3d.errors import DataError
from medcl3d.pairs.body_coordinates import BodyCoordinates, middle_of_body
from medcl3d.types import Keys, Triple, ViewSpec


@dataclass(frozen=True)
class Collection:
    """What strategies see of the scans: who, when, where and how large; never a voxel.

    table        the manifest, one row a scan; a scan's id is its row number
    shapes       ``Int[n, 3]`` voxels
    affines      ``Float64[n, 4, 4]`` voxel index -> world mm
    body_boxes   ``Int[n, 2, 3]`` first and last-plus-one voxel of the body (the whole scan where there is no mask)
    columns      what a placebo may permute: integer codes (-1: none) for ids, floats for numbers
    patch_size   voxels of a view's grid
    from_world   ``Float64[n, 4, 4]`` world mm -> body mm (default: from the middle of the body's box)
    body_shift   ``Float64[n, 3]`` where a placebo says that things lie elsewhere in the body
    slice_seed   where a placebo says that slices lie elsewhere in their scan
    """

    table: pd.DataFrame
    shapes: np.ndarray
    affines: np.ndarray
    body_boxes: np.ndarray
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    patch_size: Triple = (32, 32, 32)
    from_world: np.ndarray | None = None
    body_shift: np.ndarray | None = None
    slice_seed: int | None = None

    def __len__(self) -> int:
        return len(self.table)

    @staticmethod
    def of(
        table: pd.DataFrame, shapes: np.ndarray, affines: np.ndarray, body_boxes: np.ndarray, from_world: np.ndarray | None = None
    ) -> Collection:
        """Code the manifest's columns and put them beside the geometry."""
        columns: dict[str, np.ndarray] = {}
        for name in table.columns:
            if name in ("scan", "session", "split", *PATH_COLUMNS):
                continue
            numbers = pd.to_numeric(table[name], errors="coerce") if name not in ID_COLUMNS else None
            if numbers is not None and numbers.notna().sum() == table[name].notna().sum():
                columns[name] = numbers.to_numpy(np.float64)
            else:
                codes = pd.factorize(table[name], sort=True)[0]
                columns[name] = codes.astype(np.int64) if name in ID_COLUMNS else np.where(codes < 0, np.nan, codes).astype(np.float64)
        table = table.reset_index(drop=True)
        return Collection(table, np.asarray(shapes), np.asarray(affines), np.asarray(body_boxes), columns, from_world=from_world)

    def column(self, name: str, scans: np.ndarray | slice = slice(None)) -> np.ndarray:
        """A column of the manifest as ``Float64[n]``, of all scans or of some: numbers, or codes of ids and categories.

        NaN where missing. DataError where there is no such column.
        """
        if name not in self.columns:
            raise DataError(f"the manifest has no column {name!r}; there are {', '.join(self.columns)}")
        values = self.columns[name][scans].astype(np.float64)
        return np.where(values < 0, np.nan, values) if name in ID_COLUMNS else values

    def take(self, rows: Sequence[int] | np.ndarray) -> Collection:
        """The same collection with some of its scans. Codes stay as they were."""
        index = np.asarray(rows, dtype=np.int64)
        return replace(
            self,
            table=self.table.iloc[index].reset_index(drop=True),
            shapes=self.shapes[index],
            affines=self.affines[index],
            body_boxes=self.body_boxes[index],
            columns={name: values[index] for name, values in self.columns.items()},
            from_world=None if self.from_world is None else self.from_world[index],
            body_shift=None if self.body_shift is None else self.body_shift[index],
        )

    def with_columns(self, columns: Mapping[str, np.ndarray]) -> Collection:
        """The same collection with some columns replaced."""
        return replace(self, columns={**self.columns, **columns})

    @cached_property
    def _texts(self) -> dict[str, np.ndarray]:
        return {}

    def texts(self, name: str) -> np.ndarray:
        """A column of the table as it was written, ``Object[n]``, NaN where missing: what no placebo permutes."""
        if name not in self._texts:
            self._texts[name] = self.table[name].to_numpy(dtype=object)
        return self._texts[name]

    @cached_property
    def _groups(self) -> dict[tuple[str, ...], tuple[np.ndarray, list[np.ndarray]]]:
        return {}

    def sharing(self, scan: int, *names: str) -> np.ndarray:
        """``Int[n]``: the scans, in order and itself among them, whose ids in all of these columns are those of a scan."""
        if names not in self._groups:  # sorted once: to compare each scan with all others is quadratic in their number
            group = np.unique(np.stack([self.columns[name] for name in names], axis=1), axis=0, return_inverse=True)[1].reshape(-1)
            ends = np.cumsum(np.bincount(group))
            self._groups[names] = group, np.split(np.argsort(group, kind="stable"), ends[:-1])
        group, rows = self._groups[names]
        return rows[group[scan]]

    @cached_property
    def spacings(self) -> np.ndarray:
        """``Float64[n, 3]`` mm per voxel along each axis."""
        return np.linalg.norm(self.affines[:, :3, :3], axis=1)

    @cached_property
    def axes(self) -> np.ndarray:
        """``Float64[n, 3, 3]``: column k is the direction of voxel axis k in the world; sheared if the scan is."""
        return self.affines[:, :3, :3] / self.spacings[:, None, :]

    @cached_property
    def body(self) -> BodyCoordinates:
        """Where things lie in the body."""
        found = self.from_world
        if found is None:
            found = np.array([middle_of_body(a, box) for a, box in zip(self.affines, self.body_boxes, strict=True)]).reshape(-1, 4, 4)
        coordinates = BodyCoordinates.of(found, self.affines, self.body_boxes)
        return coordinates if self.body_shift is None else replace(coordinates, shift=self.body_shift)

    def world(self, scans: np.ndarray, voxels: np.ndarray) -> np.ndarray:
        """World mm of voxel coordinates (fractions allowed, a voxel's centre is at its index): ``[N, 3]`` -> ``[N, 3]``."""
        affines = self.affines[scans]
        return np.einsum("nij,nj->ni", affines[:, :3, :3], voxels) + affines[:, :3, 3]

    def matched(self, scan: int, other: int, voxel: np.ndarray) -> np.ndarray:
        """World mm in `other` of the place that `voxel` has in `scan`, ``Float64[3]``.

        In one frame that is the same point of the world; else the same position in body coordinates.
        """
        place: np.ndarray = self.world(np.array([scan]), voxel[None])[0]
        if self.share_frame(scan, other):
            return place
        from_world = self.body.from_world[scan]
        return self.body.to_world(other, from_world[:3, :3] @ place + from_world[:3, 3])

    def share_frame(self, scan: int, other: int) -> bool:
        """Whether two scans have one world."""
        frame = self.columns.get("frame")
        return scan == other or (frame is not None and bool(frame[scan] == frame[other]))

    def fraction(self, scans: np.ndarray, voxels: np.ndarray) -> np.ndarray:
        """Voxel coordinates as shares of the body's extent along the scan's axes: ``[N, 3]`` -> ``Float64[N, 3]``."""
        low, stop = self.body_boxes[scans, 0], self.body_boxes[scans, 1]
        share: np.ndarray = (voxels - low + 0.5) / (stop - low)
        return share if self.body_shift is None else np.mod(share + self.body_shift[scans], 1.0)

    def keys(self, views: Sequence[ViewSpec], sample: np.ndarray, view: np.ndarray) -> Keys:
        """The keys of some views, one row a view.

        sample, view: ``Int[N]``, the run-wide sample each view belongs to and its number there.
        """
        scans = np.array([v.scan for v in views], dtype=np.int64)
        boxes = [v.told or v.box for v in views]
        sizes = np.array([box.size for box in boxes], dtype=np.float64)
        middle = np.array([box.center for box in boxes])
        center = self.world(scans, middle)
        count = len(views)
        own = ("patient", "modality", "frame", "session_days", "class")

        def ids(name: str, default: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(self.columns[name][scans] if name in self.columns else default)

        none = np.full(count, -1, dtype=np.int64)
        days = self.columns["session_days"][scans] if "session_days" in self.columns else np.full(count, np.nan)
        return Keys(
            sample=torch.from_numpy(np.asarray(sample, dtype=np.int64)),
            view=torch.from_numpy(np.asarray(view, dtype=np.int64)),
            scan=torch.from_numpy(scans),
            frame=ids("frame", scans),
            patient=ids("patient", none),
            modality=ids("modality", none),
            label=ids("class", none),
            session_days=torch.from_numpy(days),
            center_mm=torch.from_numpy(center),
            size_mm=torch.from_numpy(sizes * self.spacings[scans]),
            axes=torch.from_numpy(self.axes[scans]),
            body=torch.from_numpy(self.body.place(scans, center)),
            fraction=torch.from_numpy(self.fraction(scans, middle)),
            point=torch.from_numpy(none.copy()),
            position_mm=torch.full((count, 3), torch.nan, dtype=torch.float64),
            metadata={name: torch.from_numpy(values[scans]) for name, values in self.columns.items() if name not in own},
        )

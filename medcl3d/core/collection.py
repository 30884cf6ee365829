"""The collection: the manifest and the geometry of the stored scans, the only input of pair strategies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Int, Real, Shaped

from medcl3d.core.body_coordinates import BodyCoordinates, middle_of_body
from medcl3d.core.columns import ID_COLUMNS, PATH_COLUMNS
from medcl3d.core.errors import DataError
from medcl3d.core.geometry import Triple, ViewSpec
from medcl3d.core.keys import Keys


@dataclass(frozen=True)
class Collection:
    """Metadata and geometry of the scans (patients, dates, positions, sizes), without voxels.

    table        the manifest, one row per scan; a scan's id is its row number
    shapes       ``Int[n, 3]`` voxels
    affines      ``Float64[n, 4, 4]`` voxel index -> world mm
    body_boxes   ``Int[n, 2, 3]`` first and last-plus-one voxel of the body (the whole scan if there is no
                 mask)
    columns      the columns that a placebo may permute: integer codes (-1: none) for ids, floats for numbers
    patch_size   voxels of a view's grid
    from_world   ``Float64[n, 4, 4]`` world mm -> body mm (default: from the middle of the body's box)
    slice_seed   seed of a placebo's slice positions
    """

    table: pd.DataFrame
    shapes: Int[np.ndarray, "n 3"]
    affines: Float64[np.ndarray, "n 4 4"]
    body_boxes: Int[np.ndarray, "n 2 3"]
    columns: Mapping[str, Real[np.ndarray, " n"]] = field(default_factory=dict)
    patch_size: Triple = (32, 32, 32)
    from_world: Float64[np.ndarray, "n 4 4"] | None = None
    slice_seed: int | None = None

    def __len__(self) -> int:
        return len(self.table)

    @staticmethod
    def of(
        table: pd.DataFrame,
        shapes: Int[np.ndarray, "n 3"],
        affines: Float64[np.ndarray, "n 4 4"],
        body_boxes: Int[np.ndarray, "n 2 3"],
        from_world: Float64[np.ndarray, "n 4 4"] | None = None,
    ) -> Collection:
        """A collection from a manifest, whose columns are encoded as numbers, and the scans' geometry."""
        columns: dict[str, np.ndarray] = {}
        for name in table.columns:
            if name in ("scan", "session", "split", *PATH_COLUMNS):
                continue
            numbers = pd.to_numeric(table[name], errors="coerce") if name not in ID_COLUMNS else None
            if numbers is not None and numbers.notna().sum() == table[name].notna().sum():
                columns[name] = numbers.to_numpy(np.float64)
            else:
                codes = pd.factorize(table[name], sort=True)[0]
                values = codes if name in ID_COLUMNS else np.where(codes < 0, np.nan, codes)
                columns[name] = values.astype(np.int64 if name in ID_COLUMNS else np.float64)
        table = table.reset_index(drop=True)
        geometry = np.asarray(shapes), np.asarray(affines), np.asarray(body_boxes)
        return Collection(table, *geometry, columns, from_world=from_world)

    def column(
        self, name: str, scans: Int[np.ndarray, " m"] | slice = slice(None)
    ) -> Float64[np.ndarray, " m"]:
        """A column of the manifest as ``Float64[n]`` for `scans` (default: all).

        Numbers, or codes of ids and categories; NaN if missing. DataError if the column does not exist.
        """
        if name not in self.columns:
            raise DataError(f"the manifest has no column {name!r}; there are {', '.join(self.columns)}")
        values = self.columns[name][scans].astype(np.float64)
        return np.where(values < 0, np.nan, values) if name in ID_COLUMNS else values

    def take(self, rows: Sequence[int] | Int[np.ndarray, " m"]) -> Collection:
        """The collection restricted to some scans. Codes do not change."""
        index = np.asarray(rows, dtype=np.int64)
        return replace(
            self,
            table=self.table.iloc[index].reset_index(drop=True),
            shapes=self.shapes[index],
            affines=self.affines[index],
            body_boxes=self.body_boxes[index],
            columns={name: values[index] for name, values in self.columns.items()},
            from_world=None if self.from_world is None else self.from_world[index],
        )

    def with_columns(self, columns: Mapping[str, Real[np.ndarray, " n"]]) -> Collection:
        """The same collection with some columns replaced."""
        return replace(self, columns={**self.columns, **columns})

    @cached_property
    def _texts(self) -> dict[str, Shaped[np.ndarray, " n"]]:
        return {}

    def texts(self, name: str) -> Shaped[np.ndarray, " n"]:
        """A column of the table as text, ``Object[n]``, NaN if missing; placebos do not permute it."""
        if name not in self._texts:
            self._texts[name] = self.table[name].to_numpy(dtype=object)
        return self._texts[name]

    @cached_property
    def _groups(self) -> dict[tuple[str, ...], tuple[np.ndarray, list[np.ndarray], np.ndarray]]:
        return {}

    def groups(self, *names: str) -> tuple[Int[np.ndarray, " n"], list[np.ndarray], Int[np.ndarray, " g"]]:
        """Scans with equal values in all these columns: each scan's group, the groups, their first scans."""
        if (
            names not in self._groups
        ):  # sorted once; comparing each scan with all others is quadratic in their number
            values = np.stack([self.columns[name] for name in names], axis=1)
            group = np.unique(values, axis=0, return_inverse=True)[1].reshape(-1)
            order = np.argsort(group, kind="stable")
            ends = np.cumsum(np.bincount(group))
            first = order[np.concatenate([[0], ends[:-1]])]
            self._groups[names] = group, np.split(order, ends[:-1]), first
        return self._groups[names]

    def sharing(self, scan: int, *names: str) -> Int[np.ndarray, " m"]:
        """``Int[n]``: the scans with the same ids as `scan` in all these columns, with itself, in order."""
        group, rows, _ = self.groups(*names)
        found: np.ndarray = rows[group[scan]]
        return found

    @cached_property
    def spacings(self) -> Float64[np.ndarray, "n 3"]:
        """``Float64[n, 3]`` mm per voxel along each axis."""
        return np.asarray(np.linalg.norm(self.affines[:, :3, :3], axis=1))

    @cached_property
    def axes(self) -> Float64[np.ndarray, "n 3 3"]:
        """``Float64[n, 3, 3]``: column k is the world direction of voxel axis k; sheared if the scan is."""
        return np.asarray(self.affines[:, :3, :3] / self.spacings[:, None, :])

    @cached_property
    def body(self) -> BodyCoordinates:
        """The body coordinates of the scans."""
        from_world = self.from_world
        if from_world is None:
            boxes = zip(self.affines, self.body_boxes, strict=True)
            from_world = np.array([middle_of_body(affine, box) for affine, box in boxes]).reshape(-1, 4, 4)
        return BodyCoordinates(from_world)

    def world(
        self, scans: Int[np.ndarray, " N"], voxels: Real[np.ndarray, "N 3"]
    ) -> Float64[np.ndarray, "N 3"]:
        """World mm of voxel coordinates (a voxel's centre is at its index): ``[N, 3]`` -> ``[N, 3]``."""
        affines = self.affines[scans]
        return np.asarray(np.einsum("nij,nj->ni", affines[:, :3, :3], voxels) + affines[:, :3, 3])

    def corresponding_point(
        self, scan: int, other: int, voxel: Real[np.ndarray, 3]
    ) -> Float64[np.ndarray, 3]:
        """The corresponding point in `other` of `voxel` in `scan`, ``Float64[3]`` world mm.

        In a shared frame it is the same world point; otherwise the same position in body coordinates.
        """
        point: np.ndarray = self.world(np.array([scan]), voxel[None])[0]
        if self.share_frame(scan, other):
            return point
        from_world = self.body.from_world[scan]
        return self.body.to_world(other, from_world[:3, :3] @ point + from_world[:3, 3])

    def share_frame(self, scan: int, other: int) -> bool:
        """Whether two scans share world millimetres."""
        frame = self.columns.get("frame")
        return scan == other or (frame is not None and bool(frame[scan] == frame[other]))

    def fraction(
        self, scans: Int[np.ndarray, " N"], voxels: Real[np.ndarray, "N 3"]
    ) -> Float64[np.ndarray, "N 3"]:
        """Normalised positions of voxel coordinates: 0 to 1 over the body's box along the scan's axes.

        ``[N, 3]`` -> ``Float64[N, 3]``
        """
        low, stop = self.body_boxes[scans, 0], self.body_boxes[scans, 1]
        return np.asarray((voxels - low + 0.5) / (stop - low))

    def keys(
        self, views: Sequence[ViewSpec], sample: Real[np.ndarray, " N"], view: Real[np.ndarray, " N"]
    ) -> Keys:
        """The keys of views, one row per view.

        sample, view: ``Int[N]``, the run-wide sample of each view and its number within the sample.
        """
        scans = np.array([v.scan for v in views], dtype=np.int64)
        boxes = [v.key_box or v.box for v in views]
        sizes = np.array([box.size for box in boxes], dtype=np.float64)
        middle = np.array([box.center for box in boxes])
        center = self.world(scans, middle)
        count = len(views)
        separate = ("patient", "modality", "frame", "session_days", "class")  # keys, not metadata

        def ids(name: str, default: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(self.columns[name][scans] if name in self.columns else default)

        none = np.full(count, -1, dtype=np.int64)
        has_days = "session_days" in self.columns
        days = self.columns["session_days"][scans] if has_days else np.full(count, np.nan)
        metadata = {
            name: torch.from_numpy(values[scans])
            for name, values in self.columns.items()
            if name not in separate
        }
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
            metadata=metadata,
        )

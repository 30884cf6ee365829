"""The grid on which a page shows a scan, and arrays as text for the page."""

from __future__ import annotations

import base64
import gzip
from dataclasses import dataclass
from typing import Any

import numpy as np

from medcl3d.core.geometry import Triple, triple
from medcl3d.store.splits import Split
from medcl3d.store.store import Store
from medcl3d.viewer.chosen_scans import side_of

MOST_VOXELS = 128  # per axis of a shown scan
LEVELS = 255
WINDOW = (1.0, 99.5)  # percentiles of the body that are black and white at first


@dataclass(frozen=True)
class ShownGrid:
    """Every `step`-th voxel of a scan along each axis; voxel i of it is voxel i * step of the scan."""

    shape: Triple
    step: Triple
    affine: np.ndarray

    @staticmethod
    def of(store: Store, scan: int) -> ShownGrid:
        """The finest grid with at most `MOST_VOXELS` per axis."""
        whole = store.collection.shapes[scan]
        step = -(-whole // MOST_VOXELS)
        scale = np.diag([*step.astype(float), 1.0])
        return ShownGrid(triple(-(-whole // step)), triple(step), store.collection.affines[scan] @ scale)

    def of_whole(self, voxels: np.ndarray) -> np.ndarray:
        """Positions ``Float64[N, 3]`` of voxels of the scan on this grid."""
        found: np.ndarray = np.asarray(voxels, dtype=np.float64) / np.array(self.step)
        return found

    def every(self, array: np.ndarray) -> np.ndarray:
        """The voxels of this grid in an array ``[D, H, W]`` of the scan."""
        a, b, c = self.step
        return np.ascontiguousarray(array[::a, ::b, ::c])


def packed(array: np.ndarray) -> dict[str, Any]:
    """An array as text: gzip of its bytes (little endian, last axis fastest), then base64."""
    kind = {1: "u1", 2: "u2"}[array.dtype.itemsize]
    content = np.ascontiguousarray(array, dtype=f"<{kind}").tobytes()
    return {"type": kind, "data": base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()}


def shown_scan(store: Store, split: Split, scan: int) -> dict[str, Any]:
    """One scan for the page: identity, geometry, voxels of the first channel, label map."""
    grid, collection = ShownGrid.of(store, scan), store.collection
    row = collection.table.iloc[scan]
    voxels = grid.every(store.read_volume(scan)[0])
    low, high = float(voxels.min()), float(voxels.max())
    levels = to_levels(voxels, low, high)
    to_body = collection.body.from_world[scan] @ grid.affine
    frame = collection.columns.get("frame", np.arange(len(collection)))
    return {
        "name": str(row["scan"]),
        "patient": str(row["patient"]),
        "modality": str(row.get("modality", "")),
        "side": side_of(split, str(row["patient"])),
        "shape": list(grid.shape),
        "step": list(grid.step),
        "spacing": np.linalg.norm(grid.affine[:3, :3], axis=0).tolist(),
        "toWorld": grid.affine.tolist(),
        "fromWorld": np.linalg.inv(grid.affine).tolist(),
        "toBody": to_body.tolist(),
        "fromBody": np.linalg.inv(to_body).tolist(),
        "frame": int(frame[scan]),
        "range": [low, high],
        "window": _window(levels, collection.body_boxes[scan], grid),
        "voxels": packed(levels),
        "label": packed(grid.every(store.read_label(scan)).astype(np.uint16))
        if store.has_label(scan)
        else None,
    }


def to_levels(voxels: np.ndarray, low: float, high: float) -> np.ndarray:
    """``UInt8[D, H, W]``: voxels from `low` to `high` as 0 to 255."""
    share = (voxels.astype(np.float64) - low) / max(high - low, 1e-12)
    levels: np.ndarray = np.rint(share * LEVELS).astype(np.uint8)
    return levels


def _window(levels: np.ndarray, box: np.ndarray, grid: ShownGrid) -> list[int]:
    """The levels that are black and white at first, from percentiles of the body's box."""
    step = np.array(grid.step)
    inside = levels[tuple(slice(a, b) for a, b in zip(box[0] // step, -(-box[1] // step), strict=True))]
    low, high = np.percentile(inside if inside.size else levels, WINDOW)
    return [int(low), int(max(high, low + 1))]

"""What the pair audit compares items by: structures of label maps, or classes of a column."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medcl3d.core.errors import ConfigError, DataError
from medcl3d.core.keys import Keys
from medcl3d.pretraining.parts import Pretraining
from medcl3d.sampling.raw_batch import RawBatch
from medcl3d.store.store import Store

STRUCTURES = "structures"


class Structures:
    """Label maps: a view is composed of the structures of its box, a point of the one at its voxel."""

    by = STRUCTURES

    def __init__(self, store: Store):
        self.store = store
        values = [value for value in sorted(store.label_names) if value > 0]
        self.names = tuple(store.label_names[value] for value in values)
        self._index = np.full(max(values, default=0) + 1, -1)
        self._index[values] = np.arange(len(values))

    def _number(self, labels: np.ndarray) -> np.ndarray:
        """Label value -> number of the structure; -1 for background and values without a name."""
        known = (labels > 0) & (labels < len(self._index))
        return self._index[np.where(known, labels, 0)]

    def of_views(self, raw: RawBatch, scans: np.ndarray) -> Tensor:
        """``Float32[N, K]``: the fraction of a view's voxels in each structure; NaN without a label map.

        scans: rows of the store
        """
        views = [view for group in raw.groups for view in group.views]
        found = np.full((len(views), len(self.names)), np.nan, np.float32)
        for row, view in enumerate(views):
            scan = int(scans[view.scan])
            if self.store.has_label(scan):
                numbers = self._number(self.store.read_label(scan, view.box).ravel())
                found[row] = np.bincount(numbers + 1, minlength=len(self.names) + 1)[1:] / numbers.size
        return torch.from_numpy(found)

    def of_points(self, keys: Keys, position_mm: Tensor, scans: np.ndarray) -> Tensor:
        """``Float32[N, K]``: one-hot structure at each point ``Float64[N, 3]`` in world mm.

        NaN without a label map, 0 for background.
        """
        found = np.full((len(keys), len(self.names)), np.nan, np.float32)
        for scan in torch.unique(keys.scan).tolist():
            rows, stored = (keys.scan == scan).numpy(), int(scans[scan])
            if not self.store.has_label(stored):
                continue
            affine, labels = self.store.collection.affines[stored], self.store.read_label(stored)
            mm = position_mm[torch.from_numpy(rows)].numpy()
            voxels = np.rint(np.linalg.solve(affine[:3, :3], (mm - affine[:3, 3]).T)).astype(int)
            numbers = self._number(labels[tuple(np.clip(voxels.T, 0, np.array(labels.shape) - 1).T)])
            found[rows] = np.eye(len(self.names), dtype=np.float32)[numbers] * (numbers >= 0)[:, None]
        return torch.from_numpy(found)


class Classes:
    """A column of the manifest: an item has the class of its scan."""

    def __init__(self, by: str, values: pd.Series):
        self.by = by
        self.names = tuple(sorted({str(value) for value in values.dropna()}))
        known = np.array([str(value) if pd.notna(value) else None for value in values], dtype=object)
        self._codes = pd.Categorical(known, self.names).codes

    def _of(self, scans: np.ndarray) -> Tensor:
        codes = self._codes[scans]
        found = np.eye(len(self.names), dtype=np.float32)[codes]
        found[codes < 0] = np.nan
        return torch.from_numpy(found)

    def of_views(self, raw: RawBatch, scans: np.ndarray) -> Tensor:
        """``Float32[N, K]``: one-hot class of each view's scan; NaN if the cell is empty."""
        return self._of(scans[[view.scan for group in raw.groups for view in group.views]])

    def of_points(self, keys: Keys, position_mm: Tensor, scans: np.ndarray) -> Tensor:
        """``Float32[N, K]``: one-hot class of each point's scan; NaN if the cell is empty."""
        return self._of(scans[keys.scan.numpy()])


Labels = Structures | Classes


def labels_of(parts: Pretraining, by: str) -> Labels:
    """Structures, or the classes of a column. ConfigError, DataError if the scans have none."""
    store, rows = parts.store, parts.scans.rows
    if by == STRUCTURES:
        if not any(store.has_label(int(row)) for row in rows):
            raise DataError(
                f"{store.root}: no pretraining scan has a label map; prepare some scans with theirs, or "
                "compare classes, as in --by sex"
            )
        return Structures(store)
    table = store.collection.table
    if by not in table:
        raise ConfigError(
            f"--by = {by}: neither {STRUCTURES} nor a column of the manifest; it has "
            f"{', '.join(map(str, table.columns))}"
        )
    if table[by].iloc[rows].nunique() < 2:
        raise DataError(f"--by = {by}: all pretraining scans have the same value; use another column")
    return Classes(by, table[by])

"""Scan selection: the scans of a store that a run may use, by its configuration and the split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic.dataclasses import dataclass as config_dataclass

from medcl3d.config.field_types import STRICT, NonNegativeInt, Size
from medcl3d.core.collection import Collection
from medcl3d.core.errors import DataError
from medcl3d.store.splits import Split, read_split
from medcl3d.store.store import Store


@config_dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """Which scans to use, and the patch size.

    root                  output folder of `prepare`
    patch_size            voxels of a view
    smaller_than_patch    how to treat scans smaller than a patch along some axis: `error`, `pad` (with the
                          scan's own background; points are never drawn there) or `skip`
    modalities            only scans of these (default: all)
    fold                  the test fold, 0 to K - 1, if the scans were prepared with folds=K (default: train
                          and test of split.json)
    """

    root: Path
    patch_size: Size = (32, 32, 32)
    smaller_than_patch: Literal["error", "pad", "skip"] = "error"
    modalities: tuple[str, ...] | None = None
    fold: NonNegativeInt | None = None


@dataclass(frozen=True)
class ScanSelection:
    """The scans that a run may use, and the number left out per reason."""

    collection: Collection
    rows: np.ndarray
    left_out: Counter[str]

    def of(self, patients: Sequence[str]) -> ScanSelection:
        """The scans of these patients."""
        keep = np.flatnonzero(self.collection.table["patient"].isin(patients))
        return replace(self, collection=self.collection.take(keep), rows=self.rows[keep])


def select_scans(store: Store, config: DataConfig, patients: Sequence[str] | None = None) -> ScanSelection:
    """The collection restricted to `patients`, the configured modalities and scans that a patch fits into.

    DataError if no scan is left, or if a scan is smaller than the patch and smaller_than_patch is `error`.
    """
    collection = replace(store.collection, patch_size=config.patch_size)
    left_out: Counter[str] = Counter()
    keep = np.ones(len(collection), dtype=bool)

    def leave_out(mask: np.ndarray, reason: str) -> None:
        nonlocal keep
        if count := int((keep & mask).sum()):
            left_out[reason] += count
        keep &= ~mask

    if patients is not None:
        other = ~collection.table["patient"].isin(patients).to_numpy()
        leave_out(other, "patient is not in this part of the split")
    if config.modalities is not None:
        other = ~collection.table["modality"].isin(config.modalities).to_numpy()
        leave_out(other, f"modality is not in {', '.join(config.modalities)}")
    small = keep & (collection.shapes < np.array(config.patch_size)).any(1)
    if config.smaller_than_patch == "skip":
        leave_out(small, f"smaller than the patch {config.patch_size}")
    elif config.smaller_than_patch == "error" and small.any():
        ids, shapes = collection.table["scan"], collection.shapes
        first = ", ".join(f"{ids.iloc[i]} {tuple(shapes[i].tolist())}" for i in np.flatnonzero(small)[:3])
        smaller = f"smaller than data.patch_size = {config.patch_size} (first: {first})"
        problem = f"{int(small.sum())} of {int(keep.sum())} scans are {smaller}"
        smallest = tuple(shapes[keep].min(0).tolist())
        remedy = f"set data.smaller_than_patch to pad or skip, or lower the patch to at most {smallest}"
        raise DataError(config.root, problem, remedy)
    if not keep.any():
        reasons = "; ".join(f"{n}: {reason}" for reason, n in left_out.items())
        raise DataError(config.root, f"no scan is left to use ({reasons})")
    rows = np.flatnonzero(keep)
    return ScanSelection(collection.take(rows), rows, left_out)


def pretraining_scans(store: Store, config: DataConfig) -> ScanSelection:
    """The scans of the training patients; test patients never enter pretraining."""
    return select_scans(store, config, split_of(store, config).train)


def split_of(store: Store, config: DataConfig) -> Split:
    """The split of split.json, or of one of its folds.

    ConfigError, DataError if it does not fit the store.
    """
    return read_split(config.root / "split.json", store.collection.table["patient"]).of_fold(config.fold)

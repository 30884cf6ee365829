"""Label selection: the scans that train a task, and those that test it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from medcl3d.core.errors import DataError
from medcl3d.downstream.task import DrawsEachStratumFirst, Task
from medcl3d.store.scan_selection import DataConfig, ScanSelection, select_scans
from medcl3d.store.splits import Split, select_labelled
from medcl3d.store.store import Store


def labelled_scans(
    store: Store, data: DataConfig, task: Task, split: Split, name: str, num: int | None, seed: int
) -> tuple[ScanSelection, tuple[str, ...]]:
    """The training scans whose labels are used, and their patients.

    ConfigError, DataError if there are too few.
    """
    usable = with_target(select_scans(store, data, split.train), task, store, "train", name)
    patients = usable.collection.table["patient"]
    # The first scan of a patient determines the stratum.
    strata = {
        p: task.stratum(store, int(row)) for p, row in zip(patients[::-1], usable.rows[::-1], strict=True)
    }
    each_first = isinstance(task, DrawsEachStratumFirst) and task.each_stratum_first
    labelled = select_labelled(split, list(strata), num or len(strata), seed, strata, each_first)
    return usable.of(labelled), labelled


def scans_to_test(store: Store, data: DataConfig, task: Task, split: Split, name: str) -> ScanSelection:
    """The scans of the test patients. Small scans are padded, even if training skips them."""
    return with_target(
        select_scans(store, replace(data, smaller_than_patch="pad"), split.test), task, store, "test", name
    )


def with_target(scans: ScanSelection, task: Task, store: Store, side: str, name: str) -> ScanSelection:
    """The scans with a target for the task. DataError if there are none."""
    keep = np.flatnonzero([task.has_target(store, int(scan)) for scan in scans.rows])
    if not len(keep):
        raise DataError(
            store.root, f"no scan of the {side} patients has labels for {name}", "prepare scans with labels"
        )
    return ScanSelection(scans.collection.take(keep), scans.rows[keep], scans.left_out)

"""A sample of 20,000 rows costs what one of 200 costs: counted in calls of functions and in bytes."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from medcl3d.config.field_types import Choice
from medcl3d.core.collection import Collection
from medcl3d.pairs import PAIRS
from medcl3d.pairs.batch_grouping import batch_grouping_of
from medcl3d.sampling.pair_dataset import PairDataset
from medcl3d.sampling.plan import Plan
from medcl3d.store.scan_selection import DataConfig, select_scans
from medcl3d.store.store import Store
from medcl3d.views import VIEWS

FEW, MANY = 200, 20_000
BATCHES = range(1, 7)
COLUMNS = {"columns": {"age": 5.0, "sex": "equal"}}
STRATEGIES = [
    Choice("overlapping_crops"),
    Choice("longitudinal"),
    Choice("cross_modality", {"across_frames": "body", "modalities": ("T1", "T2")}),
    Choice("tabular_neighbours", COLUMNS),
    Choice("metadata_kernel", COLUMNS),
]


def of_rows(small: Store, num: int) -> Store:
    """A store of `num` rows that repeat the scans of a small one, as further patients."""
    number, copy = np.arange(num) % len(small), np.arange(num) // len(small)
    table = small.collection.table.iloc[number].reset_index(drop=True)
    for name in ("scan", "patient", "frame"):
        table[name] = [f"{value}_{i}" for value, i in zip(table[name], copy, strict=True)]
    ages = np.random.default_rng(0).uniform(20, 90, num)
    table["age"] = ages[np.unique(table["patient"], return_inverse=True)[1]].round().astype(str)
    c = small.collection
    assert c.from_world is not None
    made = Collection.of(
        table, c.shapes[number], c.affines[number], c.body_boxes[number], c.from_world[number]
    )
    return Store(
        small.root, made, small.num_channels, small.label_names, tuple(small.scans[i] for i in number)
    )


def dataset_of(store: Store, choice: Choice) -> PairDataset:
    scans = select_scans(store, DataConfig(root=store.root, patch_size=(8, 8, 8)))
    strategy = PAIRS.build(choice)
    grouping = batch_grouping_of(strategy, scans.collection)
    plan = Plan(strategy.anchors(scans.collection).ids, 8, 0, grouping)
    return PairDataset(store, scans, strategy, VIEWS.build(Choice("mri")), plan, 1 << 30)


def cost(dataset: PairDataset) -> tuple[float, float]:
    """Calls of functions, and bytes held at most beside those of before, per batch; its files are open."""
    calls = 0

    def count(_frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    for step in BATCHES:
        dataset[step]
    sys.setprofile(count)
    try:
        for step in BATCHES:
            dataset[step]
    finally:
        sys.setprofile(None)
    tracemalloc.start()
    try:
        peaks = []
        for step in BATCHES:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            dataset[step]
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    return calls / len(BATCHES), float(np.median(peaks))


@pytest.mark.parametrize("choice", STRATEGIES, ids=lambda choice: choice.name)
def test_a_batch_of_many_rows_costs_what_one_of_few_costs(tiny_store: Path, choice: Choice) -> None:
    small = Store.open(tiny_store)
    few, many = (cost(dataset_of(of_rows(small, num), choice)) for num in (FEW, MANY))
    print(f"{choice.name}: calls {few[0]:.0f} and {many[0]:.0f}, bytes {few[1]:.0f} and {many[1]:.0f}")
    assert many[0] <= 1.25 * few[0], "calls of functions"
    assert many[1] <= 1.25 * few[1], "bytes"


def test_a_row_takes_little_memory(tiny_store: Path) -> None:
    """Beside its description, of which there is one per scan: columns, geometry and the order of an epoch."""
    small = Store.open(tiny_store)
    tracemalloc.start()
    try:
        dataset = dataset_of(of_rows(small, MANY // 5), Choice("overlapping_crops"))
        dataset.plan.samples(0)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    print(f"{held / (MANY // 5):.0f} bytes per row")
    assert held < 2048 * MANY // 5

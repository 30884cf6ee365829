"""Targets from a manifest, weights of classes, and result rows."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, dataclass

import numpy as np
import pandas as pd
import pytest

from medcl3d.core.errors import ConfigError
from medcl3d.downstream.targets import (
    balancing,
    case_rows,
    intervals_of,
    lacking,
    numbers,
    once_per_store,
    patients_of,
)
from medcl3d.store.store import Store


@dataclass(frozen=True)
class Counting:
    """A task that draws a new number per computation."""

    name: str = "a"

    @once_per_store
    def drawn(self, store: Store, scan: int = 0) -> float:
        return float(np.random.default_rng().random()) + scan + len(store)


def test_a_value_is_computed_once_per_task_and_argument(ball_store: Store) -> None:
    task = Counting()
    assert task.drawn(ball_store, 1) == task.drawn(ball_store, 1) != task.drawn(ball_store, 2)
    assert task.drawn(ball_store) != Counting().drawn(ball_store)
    assert task == Counting() and "drawn" not in repr(task)
    assert pickle.loads(pickle.dumps(task)).drawn(ball_store, 1) == task.drawn(ball_store, 1)
    with pytest.raises(FrozenInstanceError):
        task.name = "b"  # type: ignore[misc]


def with_column(store: Store, values: list[object]) -> Store:
    other = Store.open(store.root)
    other.collection.table["age"] = values
    return other


def test_numbers_of_a_column_are_read_with_nan_if_empty(ball_store: Store) -> None:
    store = with_column(ball_store, ["1.5", "", None, "-2", "1e3", "7", "8", "9"])
    found = numbers(store, "age", np.isfinite, "target", "is wrong")
    np.testing.assert_equal(found, [1.5, np.nan, np.nan, -2, 1000, 7, 8, 9])
    with pytest.raises(ConfigError, match=r"^target: '-2' of scan scan3 is negative; use others$"):
        numbers(store, "age", lambda values: values >= 0, "target", "is negative; use others")
    assert lacking(store, "column size").startswith(
        f"{store.root / 'manifest.csv'} has no column size; it has"
    )


def test_weights_give_classes_equal_totals_and_scans_a_mean_of_one() -> None:
    counts = np.array([[3, 1], [5, 0], [0, 0]])
    weights = balancing(counts)
    np.testing.assert_allclose(weights, [[4 / (2 * 3), 4 / (2 * 1)], [1, 0], [0, 0]])
    np.testing.assert_allclose((weights * counts).sum(1), counts.sum(1))
    np.testing.assert_array_equal(balancing(counts[0]), weights[0])


def test_rows_hold_scan_and_patient_as_text() -> None:
    rows = case_rows(pd.DataFrame({"patient": [7, 8], "scan": ["a", "b"], "age": [1, 2]}))
    assert rows == [{"scan": "a", "patient": "7"}, {"scan": "b", "patient": "8"}]
    assert patients_of(rows) == ["7", "8"]


def test_measures_are_averaged_over_patients_and_undefined_ones_left_out() -> None:
    names = ("p", "p", "q")
    rows = [
        {"patient": name, "error": value, "other": np.nan}
        for name, value in zip(names, (1.0, 3.0, 6.0), strict=True)
    ]
    found = intervals_of(rows, ("error", "other"), 0)
    assert list(found) == ["error"] and found["error"].mean == 4 and found["error"].n == 2

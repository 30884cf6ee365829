"""Targets of tasks from the manifest of a store, weights of classes, and the result rows of scans."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import pandas as pd

from medcl3d.core.errors import ConfigError
from medcl3d.evaluation.statistics.intervals import Interval
from medcl3d.evaluation.statistics.over_patients import over_patients

if TYPE_CHECKING:
    from medcl3d.store.store import Store

Measurement = tuple[dict[str, Interval], list[dict[str, Any]]]
"""Metrics with intervals over patients, and one row per measured case."""
S = TypeVar("S")
P = ParamSpec("P")
R = TypeVar("R")


def once_per_store(method: Callable[Concatenate[S, Store, P], R]) -> Callable[Concatenate[S, Store, P], R]:
    """Decorate a method of a task: compute its value once per task, store and further arguments."""
    attribute = f"_{method.__name__}_of_stores"

    def kept(self: S, store: Store, /, *args: P.args, **kwargs: P.kwargs) -> R:
        known: dict[Any, R] = vars(self).setdefault(attribute, {})  # a task is frozen
        key = (store.root, args, *kwargs.items())
        if key not in known:
            known[key] = method(self, store, *args, **kwargs)
        return known[key]

    update_wrapper(kept, method)
    return kept


def lacking(store: Store, what: str) -> str:
    """The problem of a manifest without a column: its file and the columns that it has."""
    columns = ", ".join(map(str, store.collection.table.columns))
    return f"{store.root / 'manifest.csv'} has no {what}; it has {columns}"


def numbers(
    store: Store, column: str, is_valid: Callable[[np.ndarray], np.ndarray], where: str, problem: str
) -> np.ndarray:
    """``Float64[scans]``: a column of the manifest, NaN if empty.

    ConfigError if `is_valid` is False for a value: `where`, the value, its scan and `problem`.
    """
    table = store.collection.table
    given = table[column].replace("", np.nan)
    found = pd.to_numeric(given, errors="coerce").to_numpy(dtype=np.float64)
    wrong = given.notna().to_numpy() & ~is_valid(found)
    if wrong.any():
        value, scan = given[wrong].iloc[0], table["scan"][wrong].iloc[0]
        raise ConfigError(problem=f"{value!r} of scan {scan} {problem}", place=where)
    return found


def balancing(counts: np.ndarray) -> np.ndarray:
    """``Float64[..., K]``: weights of K classes of ``Int[..., K]`` scans, with equal totals per class.

    The mean over the scans is 1; a class without scans has weight 0.
    """
    total, present = counts.sum(-1, keepdims=True), (counts > 0).sum(-1, keepdims=True)
    weights: np.ndarray = np.divide(total, present * counts, out=np.zeros(counts.shape), where=counts > 0)
    return weights


def case_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The beginning of the result row of each scan of a table: its scan and patient."""
    names = zip(table["scan"], table["patient"], strict=True)
    return [{"scan": str(scan), "patient": str(patient)} for scan, patient in names]


def patients_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The patient of each result row."""
    return [row["patient"] for row in rows]


def intervals_of(rows: Sequence[Mapping[str, Any]], names: Sequence[str], seed: int) -> dict[str, Interval]:
    """The mean over patients of each measure of result rows, with its 95% interval.

    A measure that is NaN in all rows is left out.
    """
    found = {name: over_patients([row[name] for row in rows], patients_of(rows), seed) for name in names}
    return {name: interval for name, interval in found.items() if interval is not None}

"""What a dense probe is given, and what it returns for a test scan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from medcl3d.downstream.dense.controls import DescribedVoxels
from medcl3d.downstream.label_selection import labelled_scans, scans_to_test
from medcl3d.downstream.tasks.segmentation import Segmentation
from medcl3d.evaluation.statistics.intervals import Interval
from medcl3d.evaluation.statistics.over_patients import over_patients
from medcl3d.store.scan_selection import DataConfig, select_scans
from medcl3d.store.splits import Split
from medcl3d.store.store import Store

Row = dict[str, Any]


@dataclass(frozen=True)
class DenseContext:
    """Scans of both sides of the split, and the function that describes the voxels of a scan.

    describe      scan -> its features
    num_labelled  number of labelled patients if a probe does not name its own; None: all
    """

    store: Store
    data: DataConfig
    split: Split
    describe: Callable[[int], DescribedVoxels]
    num_labelled: int | None
    seed: int

    def labelled(self, number: int | None) -> tuple[list[int], tuple[str, ...]]:
        """Training scans with label maps of so many patients (None: all), and these patients.

        A smaller selection is a subset of a larger one. ConfigError, DataError if there are too few.
        """
        scans, patients = labelled_scans(
            self.store, self.data, Segmentation(), self.split, "a dense probe", number, self.seed
        )
        return [int(row) for row in scans.rows], patients

    def tested(self) -> list[int]:
        """Test scans with label maps. DataError if there are none."""
        found = scans_to_test(self.store, self.data, Segmentation(), self.split, "a dense probe")
        return [int(row) for row in found.rows]

    def all_tested(self) -> list[int]:
        """All test scans, with label maps or without."""
        data = replace(self.data, smaller_than_patch="pad")
        return [int(row) for row in select_scans(self.store, data, self.split.test).rows]

    def training(self) -> list[int]:
        """All training scans."""
        return [int(row) for row in select_scans(self.store, self.data, self.split.train).rows]

    def ids(self, scan: int) -> Row:
        """The columns of a row that name the scan and its patient."""
        row = self.store.collection.table.iloc[scan]
        return {"scan": str(row["scan"]), "patient": str(row["patient"])}


class Measuring(Protocol):
    """A dense probe that is fitted, and adds up the results of test scans."""

    @property
    def scans(self) -> Sequence[int]:
        """The test scans that it measures."""

    @property
    def labelled(self) -> tuple[str, ...]:
        """The patients whose labels it was fitted on."""

    def add(self, scan: int, features: DescribedVoxels) -> None:
        """Measure one test scan."""

    def rows(self) -> list[Row]:
        """One row per measured case. DataError if there is none."""


class DenseProbe(Protocol):
    """A dense probe; its fields are its configuration."""

    def check(self, context: DenseContext) -> None:
        """ConfigError, DataError if the scans do not allow the probe; describes no scan."""

    def start(self, context: DenseContext) -> Measuring:
        """Fit the probe on the training side."""


def summary(rows: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Interval]:
    """Means over patients of every column of numbers; rows are averaged within scans, then patients."""
    columns = dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, float))
    found: dict[str, Interval] = {}
    for column in columns:
        of_scan: dict[tuple[str, str], list[float]] = {}
        for row in rows:
            if row.get(column) is not None:
                of_scan.setdefault((str(row["scan"]), str(row["patient"])), []).append(float(row[column]))
        interval = over_patients(
            [float(np.mean(values)) for values in of_scan.values()],
            [patient for _, patient in of_scan],
            seed,
        )
        if interval is not None:
            found[column] = interval
    return found


def rounded(value: float) -> float | None:
    """A number of a row: six decimals, None if undefined."""
    return None if np.isnan(value) else round(float(value), 6)

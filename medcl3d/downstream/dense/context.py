"""What a dense probe is given and what it returns, and the loop that describes each scan once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from medcl3d.core.errors import DataError
from medcl3d.downstream.dense.controls import DescribedVoxels
from medcl3d.downstream.label_selection import labelled_scans, scans_to_test
from medcl3d.downstream.tasks.segmentation import Segmentation
from medcl3d.evaluation.statistics.intervals import Interval
from medcl3d.evaluation.statistics.over_patients import over_patients
from medcl3d.io.progress import track
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


@dataclass(frozen=True)
class FittedProbe:
    """A dense probe that is fitted.

    scans     the test scans that it measures
    labelled  the patients whose labels it was fitted on
    measure   test scan and its features -> one row per measured case
    in_order  whether `measure` needs the scans in the order of `scans`, one after the other
    """

    scans: Sequence[int]
    labelled: tuple[str, ...]
    measure: Callable[[int, DescribedVoxels], list[Row]]
    in_order: bool = False


class DenseProbe(Protocol):
    """A dense probe; its fields are its configuration."""

    def check(self, context: DenseContext) -> None:
        """ConfigError, DataError if the scans do not allow the probe; describes no scan."""

    def fit(self, context: DenseContext) -> FittedProbe:
        """Fit the probe on the training side. ConfigError, DataError if the scans do not allow it."""


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
            [float(np.mean(values)) for values in of_scan.values()], [patient for _, patient in of_scan], seed
        )
        if interval is not None:
            found[column] = interval
    return found


def rounded(value: float) -> float | None:
    """A number of a row: six decimals, None if undefined."""
    return None if np.isnan(value) else round(float(value), 6)


@dataclass(frozen=True)
class DenseResults:
    """Metrics with intervals over patients, one row per case, labelled patients, and test patients."""

    metrics: dict[str, Interval]
    rows: list[Row]
    labelled: tuple[str, ...]
    test: tuple[str, ...]


def measure_dense(probes: Mapping[str, DenseProbe], context: DenseContext) -> DenseResults:
    """Run dense probes. ConfigError, DataError: the scans do not allow a probe."""
    fitted = {name: probe.fit(context) for name, probe in probes.items()}
    first = sorted(fitted.values(), key=lambda one: not one.in_order)
    scans = list(dict.fromkeys(scan for one in first for scan in one.scans))
    of_probes: dict[str, list[Row]] = {name: [] for name in fitted}
    for scan in track(scans, "test scans"):
        features = context.describe(scan)
        for name, one in fitted.items():
            if scan in one.scans:
                of_probes[name] += one.measure(scan, features)
    metrics: dict[str, Interval] = {}
    for name, found in of_probes.items():
        if not found:
            raise DataError(f"{name}: no voxel of a test scan has a partner in another one")
        metrics |= {f"{name}/{key}": value for key, value in summary(found, context.seed).items()}
    rows = [{"probe": name, **row} for name, found in of_probes.items() for row in found]
    labelled = max((one.labelled for one in fitted.values()), key=len)
    tested = sorted({context.ids(scan)["patient"] for scan in scans})
    return DenseResults(metrics, rows, labelled, tuple(tested))

"""All dense probes of one encoder: each scan is described once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medcl3d.downstream.dense.context import DenseContext, DenseProbe, Row, summary
from medcl3d.evaluation.statistics.intervals import Interval
from medcl3d.io.progress import track


@dataclass(frozen=True)
class DenseResults:
    """Metrics with intervals over patients, one row per case, labelled patients, and test patients."""

    metrics: dict[str, Interval]
    rows: list[Row]
    labelled: tuple[str, ...]
    test: tuple[str, ...]


def measure_dense(probes: Mapping[str, DenseProbe], context: DenseContext) -> DenseResults:
    """Run dense probes. ConfigError, DataError: the scans do not allow a probe."""
    measuring = {name: probe.start(context) for name, probe in probes.items()}
    scans = list(dict.fromkeys(scan for one in measuring.values() for scan in one.scans))
    for scan in track(scans, "test scans"):
        features = context.describe(scan)
        for one in measuring.values():
            if scan in one.scans:
                one.add(scan, features)
    metrics: dict[str, Interval] = {}
    rows: list[Row] = []
    for name, one in measuring.items():
        found = one.rows()
        metrics |= {f"{name}/{key}": value for key, value in summary(found, context.seed).items()}
        rows += [{"probe": name, **row} for row in found]
    labelled = max((one.labelled for one in measuring.values()), key=len)
    tested = sorted({context.ids(scan)["patient"] for scan in scans})
    return DenseResults(metrics, rows, labelled, tuple(tested))

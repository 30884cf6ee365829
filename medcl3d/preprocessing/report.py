"""The report of a preparation, one row per scan."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from medcl3d.datasets.manifest import Manifest
from medcl3d.io.atomic import write_text
from medcl3d.preprocessing.scan_task import Outcome


def write_report(path: Path, manifest: Manifest, outcomes: Mapping[str, Outcome]) -> None:
    rows = []
    for row in manifest.table.to_dict("records"):
        outcome = outcomes.get(row["scan"]) or Outcome(row["scan"], "not tried", "stopped before", ())
        warnings = "; ".join(outcome.warnings)
        rows.append(
            [row["scan"], row["patient"], outcome.status, outcome.reason, warnings, row["path"], row["label"]]
        )
    write_text(path, _csv(["scan", "patient", "status", "reason", "warnings", "path", "label"], rows))


def _csv(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    return text.getvalue()

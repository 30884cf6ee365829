"""`medcl3d check`: every file of a manifest, or of a store and its sources, is what it says."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from medcl3d.data.atomic import write_text
from medcl3d.data.check import Channels, Nonfinite, SkippedScan, read_image, read_label
from medcl3d.data.manifest import Manifest
from medcl3d.data.sources.csv import csv as read_csv
from medcl3d.data.sources.decathlon import decathlon
from medcl3d.data.store import Store
from medcl3d.errors import DataError


@dataclass(frozen=True)
class Finding:
    """What was found of one scan: an empty fault means that all is well."""

    scan: str
    fault: str
    warnings: str


def audit(
    target: Path,
    *,
    report: Path | None = None,
    nonfinite: Nonfinite = "error",
    channels: Channels = "error",
    say: Callable[[str], None] = lambda _: None,
) -> list[Finding]:
    """Check a prepared folder (its sources are unchanged, its voxels whole), or a manifest or Decathlon folder.

    report: a CSV with one row a scan. Raises DataError, after writing it, where anything is wrong.
    """
    target = Path(target)
    if (target / "prepared.json").exists():
        findings = list(_of_store(Store.open(target)))
    else:
        manifest = decathlon(target) if (target / "dataset.json").exists() else read_csv(target)
        findings = list(_of_manifest(manifest, nonfinite, channels))
    if report is not None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("scan", "fault", "warnings"), *((f.scan, f.fault, f.warnings) for f in findings)])
        write_text(report, text.getvalue())
    bad = [f for f in findings if f.fault]
    if bad:
        where = f" (all in {report})" if report else ""
        raise DataError(f"{len(bad)} of {len(findings)} scans of {target} are not what they say: {bad[0].fault}{where}")
    say(f"{len(findings)} scans of {target} are what they say, {sum(bool(f.warnings) for f in findings)} with warnings")
    return findings


def _of_manifest(manifest: Manifest, nonfinite: Nonfinite, channels: Channels) -> Iterator[Finding]:
    for row in manifest.table.to_dict("records"):
        if row["scan"] in manifest.faults:
            yield Finding(row["scan"], manifest.faults[row["scan"]], "")
            continue
        try:
            image = read_image(manifest.locate(row["path"]), nonfinite=nonfinite, channels=channels)
            warnings = image.warnings
            if row["label"]:
                warnings += read_label(manifest.locate(row["label"]), image, tuple(manifest.label_names)).warnings
            yield Finding(row["scan"], "", "; ".join(warnings))
        except SkippedScan as skipped:
            yield Finding(row["scan"], "", str(skipped))
        except DataError as error:
            yield Finding(row["scan"], str(error), "")


def _of_store(store: Store) -> Iterator[Finding]:
    for scan, description in enumerate(store.scans):
        try:
            store.verify(scan)
            yield Finding(description["scan"], _changed(description), "; ".join(description["warnings"]))
        except DataError as error:
            yield Finding(description["scan"], str(error), "")


def _changed(description: dict) -> str:
    """What became of the source files since; a store may travel without them, so a missing one is no fault."""
    for name in ("source", "label_source"):
        source = description[name]
        if source and Path(source["path"]).exists():
            status = Path(source["path"]).stat()
            if (status.st_size, status.st_mtime_ns) != (source["bytes"], source["mtime_ns"]):
                return f"{source['path']}: changed after preparing; run the same prepare command again"
    return ""

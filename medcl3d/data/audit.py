"""`medcl3d check`: every file of a collection, or of a store and its sources, is what it says."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medcl3d.data.atomic import replacing, write_text
from medcl3d.data.content import groups_of_one_content
from medcl3d.data.dicom.examine import examine_series, with_series
from medcl3d.data.examine import MAX_PICTURES, Finding, Look, StoredLook, examine, examine_stored
from medcl3d.data.finish import refuse_report_over
from medcl3d.data.intensity import kind_of
from medcl3d.data.manifest import Manifest
from medcl3d.data.place import CheckOptions, manifest_at, shared_out
from medcl3d.data.room import refuse_unwritable
from medcl3d.data.splits import read_split
from medcl3d.data.store import Store
from medcl3d.data.told import reasons_told, warnings_told
from medcl3d.data.workers import bar, each
from medcl3d.errors import DataError, MachineError
from medcl3d.registry import Choice

SCHEMA = 4
SMALL_BYTES = 1 << 30
CACHE = "checked.jsonl"
FACTS = ("shape", "spacing_mm", "channels", "min", "p0.5", "median", "p99.5", "max", "classes", "sha256")


@dataclass(frozen=True)
class Checked:
    """A collection and what was found of each scan, in the manifest's order."""

    target: Path
    table: pd.DataFrame
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def audit(
    target: Path,
    *,
    report: Path | None = None,
    given: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Finding]:
    """Check a prepared folder (its sources are unchanged, its voxels whole), or a collection as a source reads it.

    target  a store, a table, or a folder; a plain folder of NIfTI files is a collection too
    report  FILE.csv for a row a scan; a folder for that, a page with pictures, and what makes the next check fast
    given   `source`, fields of the source, fields of `CheckOptions`

    Raises ConfigError, and DataError, after the report is written, where more is wrong than `max_bad_fraction` allows, or one
    patient or one content stands on both sides of the split.
    """
    target = Path(target)
    if not target.exists():
        raise DataError(f"{target}: there is no such file or folder")
    choice, options = shared_out(target, dict(given or {}))
    folder = None if report is None else _opened(report)
    checked = _of_store(target, options) if choice is None else _of_source(target, choice, options, folder)
    if report is not None:
        _write(report, checked)
    leaks = _leaks(checked)
    total, bad = len(checked.findings), [f.fault for f in checked.findings if f.fault]
    for line in (*checked.notes, *_twins(checked), *warnings_told(((f.scan, f.warnings) for f in checked.findings), total)):
        say(line)
    if leaks:
        raise DataError(f"{target}: {leaks[0]}; leave each on one side")
    where = f" (all in {report})" if report else ""
    if len(bad) > options.max_bad_fraction * total:
        for line in reasons_told(bad[1:]):  # the first ends it
            say(line)
        raise DataError(f"{len(bad)} of {total} scans of {target} are not what they say: {bad[0]}{where}")
    for line in reasons_told(bad):
        say(line)
    right, warned = total - len(bad), sum(bool(f.warnings) for f in checked.findings)
    say(f"{right} scans of {target} are what they say, {warned} with warnings{where}")
    return list(checked.findings)


def _opened(report: Path) -> Path | None:
    """The folder of a report that is one, there to be written to: found before the work and not after. ConfigError, MachineError."""
    is_file = report.suffix == ".csv"
    refuse_report_over(report)
    refuse_unwritable(report, "--report", is_file=is_file)
    if is_file and report.is_dir():
        raise MachineError(f"--report = {report}: is a folder; choose another name for a file")
    (report.parent if is_file else report).mkdir(parents=True, exist_ok=True)
    return None if is_file else report


def _of_source(target: Path, choice: Choice, options: CheckOptions, folder: Path | None) -> Checked:
    manifest = manifest_at(target, choice)
    num_pictures = 0 if folder is None else MAX_PICTURES
    of_files = [_look(manifest, row, options, at < num_pictures) for at, row in enumerate(manifest.table.to_dict("records"))]
    looks = with_series(of_files, manifest.unwritten)
    look_at: Callable[[Any], Finding] = examine_series if manifest.unwritten else examine
    states = {look.scan: look.state() for look in looks}
    found = _remembered(folder, states)
    new, num_known = [look for look in looks if look.scan not in found], len(found)
    with bar("checking scans", len(new)) as advance:
        for finding in each(look_at, new, options.workers, lambda look: str(look.image)):
            found[finding.scan] = finding
            advance("checking scans")
    if folder is not None:
        _remember(folder, states, found)
    known = [f"{num_known} scans are as they were at the last check"] if num_known else []
    notes = (*manifest.notes, *_without_label(manifest.table), *known)
    return Checked(target, manifest.table, tuple(found[look.scan] for look in looks), notes)


def _without_label(table: pd.DataFrame) -> list[str]:
    """Which images lack a label map, where others have one; alone, an image is no less a scan."""
    bare = table["scan"][table["label"] == ""].tolist()
    if not bare or len(bare) == len(table):
        return []
    return [f"{len(bare)} of {len(table)} scans have no label map, as {bare[0]}"]


def _look(manifest: Manifest, row: Mapping[Any, str], options: CheckOptions, picture: bool) -> Look:
    fault, image, label = manifest.faults.get(row["scan"], ""), manifest.root, None
    try:
        image = manifest.locate(row["path"])
        label = manifest.locate(row["label"]) if row["label"] else None
    except DataError as error:
        fault = str(error)
    classes, policy = tuple(sorted(manifest.label_names)), (options.nonfinite, options.channels)
    return Look(row["scan"], row["patient"], image, label, classes, *policy, fault, kind_of(row["modality"]), picture)


def _remember(folder: Path, states: Mapping[str, str], found: Mapping[str, Finding]) -> None:
    """A line a scan, so that neither writing nor reading holds the whole in memory twice."""
    with replacing(folder / CACHE) as file:
        file.write(json.dumps({"schema": SCHEMA}).encode() + b"\n")
        for scan, state in states.items():
            file.write(json.dumps([scan, state, vars(found[scan])]).encode() + b"\n")


def _remembered(folder: Path | None, states: Mapping[str, str]) -> dict[str, Finding]:
    """What an earlier check of the same report found of scans that are as they were; {} where there is none, or of another version."""
    found: dict[str, Finding] = {}
    try:
        with open(folder / CACHE if folder else os.devnull, encoding="utf-8") as lines:
            if json.loads(next(lines, "{}")).get("schema") != SCHEMA:
                return {}
            for scan, state, finding in map(json.loads, lines):
                if states.get(scan) == state:
                    found[scan] = Finding(**{**finding, "warnings": tuple(finding["warnings"])})
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return {}
    return found


def _of_store(target: Path, options: CheckOptions) -> Checked:
    store = Store.open(target)
    patients = store.collection.table["patient"]
    read_split(target / "split.json", patients)
    looks = [
        StoredLook(target, str(patients.iloc[scan]), about, tuple(store.spacing_mm(scan).round(4).tolist()))
        for scan, about in enumerate(store.scans)
    ]
    # A process takes seconds to start and reads a gigabyte in as many.
    is_small = sum(about["stored_bytes"] for about in store.scans) < SMALL_BYTES
    workers = options.workers or (1 if is_small else 0)
    found: dict[str, Finding] = {}
    with bar("checking stored scans", len(looks)) as advance:
        for finding in each(examine_stored, looks, workers, lambda look: str(look.about["scan"])):
            found[finding.scan] = finding
            advance("checking stored scans")
    return Checked(target, store.collection.table.fillna(""), tuple(found[look.about["scan"]] for look in looks), _sources_gone(store))


def _sources_gone(store: Store) -> tuple[str, ...]:
    """Of how many scans it cannot be told whether their files changed."""
    gone = [about["source"]["path"] for about in store.scans if not Path(about["source"]["path"]).exists()]
    if not gone:
        return ()
    return (f"the source files of {len(gone)} of {len(store)} scans are not there, as {gone[0]}; whether they changed was not checked",)


def _same(checked: Checked) -> list[list[int]]:
    """Rows that hold one content, two or more each."""
    return [same for _, same in groups_of_one_content([finding.facts for finding in checked.findings])]


def _twins(checked: Checked) -> list[str]:
    named = [", ".join(f"{checked.findings[row].scan} of {checked.findings[row].patient}" for row in same) for same in _same(checked)]
    return [f"the same content: {scans}" for scans in named]


def _leaks(checked: Checked) -> list[str]:
    """What stands on both sides of the manifest's split: patients, contents."""
    table = checked.table
    if "split" not in table:
        return []
    sides = table[table["split"] != ""].groupby("patient")["split"].nunique()
    both = sorted(sides.index[sides > 1])
    lines = [f"{len(both)} patients are in train and in test: {', '.join(both[:10])}"] if both else []
    for same in _same(checked):
        if len({table["split"].iloc[row] for row in same} - {""}) > 1:
            lines.append(f"one content is in train and in test: {', '.join(checked.findings[row].scan for row in same)}")
    return lines


def _write(report: Path, checked: Checked) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("scan", "patient", "fault", "warnings", *FACTS))
    writer.writerows(
        (f.scan, f.patient, f.fault, "; ".join(f.warnings), *(_cell(f.facts.get(name, "")) for name in FACTS)) for f in checked.findings
    )
    if report.suffix == ".csv":
        write_text(report, text.getvalue())
        return
    from medcl3d.data.check_page import page_of

    write_text(report / "report.csv", text.getvalue())
    write_text(report / "report.html", page_of(checked.target, checked.table, checked.findings, (*_leaks(checked), *_twins(checked))))


def _cell(value: Any) -> str:
    return "x".join(f"{v:g}" for v in value) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)

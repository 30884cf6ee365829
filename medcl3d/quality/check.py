"""`medcl3d check`: validate every file of a collection, or of a store and its sources."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from medcl3d.config.field_types import Choice
from medcl3d.core.errors import DataError, MachineError
from medcl3d.core.warning_summary import first_reasons, summarise_warnings
from medcl3d.datasets.manifest import Manifest
from medcl3d.io.atomic import open_atomic, write_text
from medcl3d.io.disk_space import require_writable
from medcl3d.io.progress import titled_bar
from medcl3d.preprocessing.intensity_kind import kind_of
from medcl3d.preprocessing.output_folder import refuse_report_over
from medcl3d.preprocessing.workers import in_parallel
from medcl3d.quality.examine import (
    MAX_PICTURES,
    CheckTask,
    Finding,
    StoredCheckTask,
    check_stored_scan,
    examine,
)
from medcl3d.quality.source_detection import CheckOptions, read_collection, split_options
from medcl3d.store.content_hashes import duplicate_groups
from medcl3d.store.splits import read_split
from medcl3d.store.store import Store

SCHEMA = 5
SMALL_BYTES = 1 << 30
CACHE = "checked.jsonl"
FACTS = ("shape", "spacing_mm", "channels", "min", "p0.5", "median", "p99.5", "max", "classes", "sha256")


T = TypeVar("T")


@dataclass(frozen=True)
class Checked:
    """A collection and the finding for each scan, in the manifest's order."""

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
    """Validate a prepared folder (sources unchanged, voxels intact), or a collection as a source reads it.

    target  a store, a table, or a folder; a plain folder of NIfTI files is a collection too
    report  FILE.csv for one row per scan; a folder for that file, a page with pictures, and a cache for the
            next check
    given   `source`, fields of the source, fields of `CheckOptions`

    Raises ConfigError. Raises DataError, after the report is written, if more scans fail than
    `max_bad_fraction` allows, or if a patient or the same content is on both sides of the split.
    """
    target = Path(target)
    if not target.exists():
        raise DataError(target, "there is no such file or folder")
    choice, options = split_options(target, dict(given or {}))
    folder = None if report is None else _opened(report)
    checked = _of_store(target, options) if choice is None else _of_source(target, choice, options, folder)
    if report is not None:
        _write(report, checked)
    leaks = _leaks(checked)
    total, bad = len(checked.findings), [f.fault for f in checked.findings if f.fault]
    warnings = summarise_warnings(((f.scan, f.warnings) for f in checked.findings), total)
    for line in (*checked.notes, *_duplicates(checked), *warnings):
        say(line)
    if leaks:
        raise DataError(target, leaks[0], "leave each on one side")
    where = f" (all in {report})" if report else ""
    if len(bad) > options.max_bad_fraction * total:
        for line in first_reasons(bad[1:]):  # the first is in the error
            say(line)
        raise DataError(f"{len(bad)} of {total} scans of {target} are invalid: {bad[0]}{where}")
    for line in first_reasons(bad):
        say(line)
    valid, warned = total - len(bad), sum(bool(f.warnings) for f in checked.findings)
    say(f"{valid} scans of {target} are valid, {warned} with warnings{where}")
    return list(checked.findings)


def _opened(report: Path) -> Path | None:
    """Create the report's folder before the check starts; None if the report is a file.

    ConfigError, MachineError.
    """
    is_file = report.suffix == ".csv"
    refuse_report_over(report)
    require_writable(report, "--report", is_file=is_file)
    if is_file and report.is_dir():
        raise MachineError(f"--report = {report}", "is a folder", "choose another name for a file")
    (report.parent if is_file else report).mkdir(parents=True, exist_ok=True)
    return None if is_file else report


def _of_source(target: Path, choice: Choice, options: CheckOptions, folder: Path | None) -> Checked:
    manifest = read_collection(target, choice)
    num_pictures = 0 if folder is None else MAX_PICTURES
    rows = enumerate(manifest.table.to_dict("records"))
    tasks = [_task(manifest, row, options, number < num_pictures) for number, row in rows]
    states = {task.scan: task.state() for task in tasks}
    found = _read_cache(folder, states)
    new, num_cached = [task for task in tasks if task.scan not in found], len(found)
    found |= _findings("checking scans", examine, new, options.workers, lambda task: task.name)
    if folder is not None:
        _write_cache(folder, states, found)
    cached = [f"{num_cached} scans are unchanged since the last check"] if num_cached else []
    notes = (*manifest.notes, *_without_label(manifest.table), *cached)
    return Checked(target, manifest.table, tuple(found[task.scan] for task in tasks), notes)


def _findings(
    title: str,
    check_scan: Callable[[T], Finding],
    tasks: Sequence[T],
    workers: int,
    name_of: Callable[[T], str],
) -> dict[str, Finding]:
    found = {}
    with titled_bar(title, len(tasks)) as advance:
        for finding in in_parallel(check_scan, tasks, workers, name_of):
            found[finding.scan] = finding
            advance(title)
    return found


def _without_label(table: pd.DataFrame) -> list[str]:
    """A note on images without a label map, if other images have one."""
    unlabelled = table["scan"][table["label"] == ""].tolist()
    if not unlabelled or len(unlabelled) == len(table):
        return []
    return [f"{len(unlabelled)} of {len(table)} scans have no label map, as {unlabelled[0]}"]


def _task(manifest: Manifest, row: Mapping[Any, str], options: CheckOptions, picture: bool) -> CheckTask:
    fault, image, label = manifest.faults.get(row["scan"], ""), manifest.root, None
    try:
        image = manifest.locate(row["path"])
        label = manifest.locate(row["label"]) if row["label"] else None
    except DataError as error:
        fault = str(error)
    return CheckTask(
        scan=row["scan"],
        patient=row["patient"],
        image=image,
        label=label,
        classes=tuple(sorted(manifest.label_names)),
        nonfinite=options.nonfinite,
        channels=options.channels,
        fault=fault,
        kind=kind_of(row["modality"]),
        picture=picture,
        series=manifest.unwritten.get(row["scan"]),
    )


def _write_cache(folder: Path, states: Mapping[str, str], found: Mapping[str, Finding]) -> None:
    """One line per scan, so that neither writing nor reading holds the whole cache in memory twice."""
    with open_atomic(folder / CACHE) as file:
        file.write(json.dumps({"schema": SCHEMA}).encode() + b"\n")
        for scan, state in states.items():
            file.write(json.dumps([scan, state, vars(found[scan])]).encode() + b"\n")


def _read_cache(folder: Path | None, states: Mapping[str, str]) -> dict[str, Finding]:
    """Findings of an earlier check for unchanged scans; {} if none, or of another version."""
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
    store = Store.open(target, sizes=False)
    patients = store.collection.table["patient"]
    read_split(target / "split.json", patients)
    spacings = store.collection.spacings.round(4).tolist()
    tasks = [
        StoredCheckTask(target, patient, about, tuple(spacing))
        for patient, about, spacing in zip(patients, store.scans, spacings, strict=True)
    ]
    # Starting a process takes seconds, in which one process reads a gigabyte.
    is_small = sum(about["stored_bytes"] for about in store.scans) < SMALL_BYTES
    workers = options.workers or (1 if is_small else 0)
    found = _findings("checking stored scans", check_stored_scan, tasks, workers, lambda task: task.scan)
    findings = tuple(found[task.scan] for task in tasks)
    return Checked(target, store.collection.table.fillna(""), findings, _missing_sources(store))


def _missing_sources(store: Store) -> tuple[str, ...]:
    """A note on scans whose source files are missing, so that changes cannot be detected."""
    missing = [path for about in store.scans if not Path(path := about["source"]["path"]).exists()]
    if not missing:
        return ()
    count = f"the source files of {len(missing)} of {len(store)} scans are missing"
    return (f"{count}, as {missing[0]}; whether they changed was not checked",)


def _duplicate_rows(checked: Checked) -> list[list[int]]:
    """Groups of two or more rows with the same content."""
    return [rows for _, rows in duplicate_groups([finding.facts for finding in checked.findings])]


def _duplicates(checked: Checked) -> list[str]:
    groups = [[checked.findings[row] for row in rows] for rows in _duplicate_rows(checked)]
    return [f"the same content: {', '.join(f'{f.scan} of {f.patient}' for f in group)}" for group in groups]


def _leaks(checked: Checked) -> list[str]:
    """Patients and contents on both sides of the manifest's split."""
    table = checked.table
    if "split" not in table:
        return []
    sides = table[table["split"] != ""].groupby("patient")["split"].nunique()
    both = sorted(sides.index[sides > 1])
    lines = [f"{len(both)} patients are in train and in test: {', '.join(both[:10])}"] if both else []
    for rows in _duplicate_rows(checked):
        if len({table["split"].iloc[row] for row in rows} - {""}) > 1:
            scans = ", ".join(checked.findings[row].scan for row in rows)
            lines.append(f"the same content is in train and in test: {scans}")
    return lines


def _write(report: Path, checked: Checked) -> None:
    rows = [
        (f.scan, f.patient, f.fault, "; ".join(f.warnings), *(_cell(f.facts.get(name, "")) for name in FACTS))
        for f in checked.findings
    ]
    table = pd.DataFrame(rows, columns=["scan", "patient", "fault", "warnings", *FACTS])
    is_file = report.suffix == ".csv"
    write_text(report if is_file else report / "report.csv", table.to_csv(index=False, lineterminator="\n"))
    if not is_file:
        from medcl3d.quality.page import render_page

        duplicates = (*_leaks(checked), *_duplicates(checked))
        page = render_page(checked.target, checked.table, checked.findings, duplicates)
        write_text(report / "report.html", page)


def _cell(value: Any) -> str:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return "x".join(f"{v:g}" for v in value) if is_list else str(value)

"""`medcl3d check`: every file of a collection, or of a store and its sources, is what it says."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from medcl3d.config import STRICT, choice_of, describe, parse
from medcl3d.data.atomic import replacing, write_text
from medcl3d.data.check import Channels, Nonfinite
from medcl3d.data.content import OF_SOURCE, groups_of_one_content
from medcl3d.data.dicom.examine import examine_series, with_series
from medcl3d.data.examine import MAX_PICTURES, Finding, Look, examine
from medcl3d.data.manifest import Manifest
from medcl3d.data.scan import file_state, is_same_file
from medcl3d.data.sources import SOURCES
from medcl3d.data.splits import read_split
from medcl3d.data.store import Store
from medcl3d.data.walk import VOLUMES, files_under
from medcl3d.data.workers import bar, each
from medcl3d.errors import ConfigError, DataError
from medcl3d.registry import Choice, Fraction

SCHEMA = 2
CACHE = "checked.jsonl"
FACTS = ("shape", "spacing_mm", "channels", "min", "p0.5", "median", "p99.5", "max", "classes", "sha256")
OF_A_FOLDER = (("dataset.json", "decathlon"), ("manifest.csv", "csv"), ("manifest.tsv", "csv"), ("manifest.json", "csv"))


@validated(frozen=True, kw_only=True, config=STRICT)
class CheckOptions:
    """How strict a check is.

    nonfinite, channels  as in `prepare`
    max_bad_fraction     of the scans that may have a fault before the exit code says so
    workers              processes; 0: as many as there are processors, up to 8
    """

    nonfinite: Nonfinite = "error"
    channels: Channels = "error"
    max_bad_fraction: Fraction = 0.0
    workers: Annotated[int, Field(ge=0, le=256)] = 0


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
    choice, options = _shared_out(target, dict(given or {}))
    folder = report if report is not None and report.suffix != ".csv" else None
    checked = _of_store(target) if choice is None else _of_source(target, choice, options, folder)
    if report is not None:
        _write(report, checked)
    leaks = _leaks(checked)
    for line in (*checked.notes, *_twins(checked)):
        say(line)
    if leaks:
        raise DataError(f"{target}: {leaks[0]}; leave each on one side")
    bad = [f for f in checked.findings if f.fault]
    where = f" (all in {report})" if report else ""
    if len(bad) > options.max_bad_fraction * len(checked.findings):
        raise DataError(f"{len(bad)} of {len(checked.findings)} scans of {target} are not what they say: {bad[0].fault}{where}")
    for finding in bad:
        say(finding.fault)
    right, warned = len(checked.findings) - len(bad), sum(bool(f.warnings) for f in checked.findings)
    say(f"{right} scans of {target} are what they say, {warned} with warnings{where}")
    return list(checked.findings)


@validated(frozen=True, config=STRICT)
class _Chosen:
    source: choice_of(SOURCES)  # type: ignore[valid-type]


def _shared_out(target: Path, given: dict[str, Any]) -> tuple[Choice | None, CheckOptions]:
    """The source (None: a store) with its fields, and the options. ConfigError for a key that neither knows."""
    known = list(CheckOptions.__dataclass_fields__)
    options = parse({k: given.pop(k) for k in known if k in given}, CheckOptions, "check")
    name = given.pop("source", None) or _source_of(target)
    if name in ("", "files"):
        if given:
            raise ConfigError(f"check: {next(iter(given))}: unknown option; say which source it is of, as source=folder")
        return (None if name == "" else Choice("files")), options
    if name in SOURCES.names():
        own = [spec.name for spec in describe(SOURCES, str(name))]
        unknown = [key for key in given if key not in own]
        if unknown:
            raise ConfigError(f"check: {unknown[0]}: unknown option; of {name}: {', '.join(own)}; of any: source, {', '.join(known)}")
    return parse({"source": {str(name): given}}, _Chosen, "check").source, options


def _source_of(target: Path) -> str:
    """By what lies there: "" for a store, "files" for a folder that says nothing of itself."""
    if (target / "prepared.json").exists():
        return ""
    if target.is_file():
        return "csv" if target.suffix.lower() in (".csv", ".tsv", ".json") else "files"
    for file, name in OF_A_FOLDER:
        if (target / file).exists():
            is_nnunet = name == "decathlon" and '"channel_names"' in (target / file).read_text(encoding="utf-8", errors="replace")
            return "nnunet" if is_nnunet else name
    return "bids" if any(target.glob("sub-*")) else "files"


def _manifest(target: Path, choice: Choice) -> Manifest:
    if choice.name != "files":
        if choice.name in ("medmnist", "simulated"):
            raise ConfigError(f"check: source {choice.name} writes its scans anew; prepare it, and check what that wrote")
        folders = (target, None) if choice.name == "dicom" else (target,)  # None: its series are looked at, and none is written
        made: Manifest = SOURCES.build(choice, *folders)
        return made
    if target.is_file():
        return Manifest.of(pd.DataFrame({"path": [target.name]}), target.parent)
    paths = [path.as_posix() for path in files_under(target) if path.name.endswith(VOLUMES)]
    if not paths:
        raise DataError(f"{target}: neither a store nor a manifest, and no NIfTI file lies there; say source=dicom where DICOM does")
    return Manifest.of(pd.DataFrame({"path": paths}), target, outside=True)


def _of_source(target: Path, choice: Choice, options: CheckOptions, folder: Path | None) -> Checked:
    manifest = _manifest(target, choice)
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
        folder.mkdir(parents=True, exist_ok=True)
        _remember(folder, states, found)
    notes = (*manifest.notes, f"{num_known} scans are as they were at the last check") if num_known else manifest.notes
    return Checked(target, manifest.table, tuple(found[look.scan] for look in looks), notes)


def _look(manifest: Manifest, row: Mapping[Any, str], options: CheckOptions, picture: bool) -> Look:
    fault, image, label = manifest.faults.get(row["scan"], ""), manifest.root, None
    try:
        image = manifest.locate(row["path"])
        label = manifest.locate(row["label"]) if row["label"] else None
    except DataError as error:
        fault = str(error)
    classes, policy = tuple(sorted(manifest.label_names)), (options.nonfinite, options.channels)
    return Look(row["scan"], row["patient"], image, label, classes, *policy, fault, picture)


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
                    found[scan] = Finding(**finding)
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return found


def _of_store(target: Path) -> Checked:
    store = Store.open(target)
    read_split(target / "split.json", store.collection.table["patient"])
    findings = []
    for scan, about in enumerate(store.scans):
        patient = str(store.collection.table["patient"].iloc[scan])
        facts = {"shape": about["shape"][1:], "channels": about["shape"][0], **{name: about[name] for name in OF_SOURCE if name in about}}
        facts["spacing_mm"] = store.spacing_mm(scan).round(4).tolist()
        try:
            store.verify(scan)
            fault, warnings = _changed(about), "; ".join(about["warnings"])
        except DataError as error:
            fault, warnings = str(error), ""
        findings.append(Finding(about["scan"], fault, warnings, patient, facts))
    return Checked(target, store.collection.table.fillna(""), tuple(findings), ())


def _changed(description: Mapping[str, Any]) -> str:
    """What became of the source files since; a store may travel without them, so a missing one is no fault."""
    for name in ("source", "label_source"):
        source = description[name]
        if source and Path(source["path"]).exists():
            try:
                now = file_state(Path(source["path"]))
                is_same = all(now[of] == source[of] for of in ("bytes", "mtime_ns")) or is_same_file(description, name, now)
            except DataError as error:
                return f"{error} (it changed after preparing)"
            if not is_same:
                return f"{source['path']}: changed after preparing; run the same prepare command again"
    return ""


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
    writer.writerows((f.scan, f.patient, f.fault, f.warnings, *(_cell(f.facts.get(name, "")) for name in FACTS)) for f in checked.findings)
    if report.suffix == ".csv":
        write_text(report, text.getvalue())
        return
    from medcl3d.data.check_page import page_of

    report.mkdir(parents=True, exist_ok=True)
    write_text(report / "report.csv", text.getvalue())
    write_text(report / "report.html", page_of(checked.target, checked.table, checked.findings, (*_leaks(checked), *_twins(checked))))


def _cell(value: Any) -> str:
    return "x".join(f"{v:g}" for v in value) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)

"""What a preparation keeps beside its scans: of which collection it is, the report, the manifest, the split, the summary."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medcl3d.data.array_file import SUFFIXES, Container
from medcl3d.data.atomic import write_json, write_text
from medcl3d.data.columns import MISSING, PATH_COLUMNS
from medcl3d.data.content import OF_SOURCE, groups_of_one_content
from medcl3d.data.manifest import Manifest
from medcl3d.data.options import PrepareOptions
from medcl3d.data.scan import SCHEMA, Outcome, stored_names
from medcl3d.data.sources import SOURCES
from medcl3d.data.splits import Split, make_folds, make_split, moved_patients, read_drawn, with_known_sides, write_split
from medcl3d.data.told import reasons_told, warnings_told
from medcl3d.data.walk import VOLUMES
from medcl3d.errors import ConfigError, DataError


@dataclass(frozen=True)
class Prepared:
    """What a preparation came to: scans stored, of which some were there already; scans refused and skipped."""

    num_ok: int
    num_there: int
    num_refused: int
    num_skipped: int
    warnings: tuple[str, ...]


def open_folder(out: Path, origin: dict[str, Any], options: dict[str, Any], say: Callable[[str], None]) -> None:
    """Refuse a folder that holds another collection; say so where options changed and all is done again.

    options: {} where no scan is there to be prepared, and so nothing depends on them.
    """
    started = out / "preparing.json"
    try:
        before = json.loads(started.read_text())
    except FileNotFoundError:
        before = None
    except ValueError:
        raise DataError(f"{started}: is damaged; delete {out} and prepare again") from None
    if before is not None:
        if _with_defaults(before["source"]) != origin:
            raise ConfigError(
                f"{out}: was prepared from {before['source']['name']} {before['source']['root']} with {before['source']['fields']}, "
                f"not from {origin['name']} {origin['root']} with {origin['fields']}; choose another folder, or delete that one"
            )
        of_then = {"store": "npy", **before["options"]} if before["options"] else {}  # before there was blosc2, nothing was said of it
        options = options or of_then
        if of_then and of_then != options:
            changed = [k for k in options if of_then.get(k) != options[k]]
            (out / "prepared.json").unlink(missing_ok=True)  # a half-changed store must not open
            if "store" in changed:
                _clear(out / "store", of_then["store"])
            say(f"{out}: other {', '.join(changed)} than before; all scans are prepared again")
    write_json(started, {"schema": SCHEMA, "source": origin, "options": options})


OURS = ("prepared.json", "manifest.csv", "report.csv", "split.json", "store")


def refuse_foreign(out: Path, root: Path | None) -> None:
    """ConfigError where a preparation would write over what is not its own.

    That is a folder which holds something in the place of what it writes, and had none before; and one whose `raw`, for files that are
    made of a source's, is where the source lies.
    """
    if root is not None and root.resolve().is_relative_to(made := (out / "raw").resolve()):
        raise ConfigError(f"--out {out}: would write into {made}, where the source lies; choose a folder beside it")
    if (out / "preparing.json").exists():
        return
    found = [name for name in OURS if (out / name).is_file() or ((out / name).is_dir() and any((out / name).iterdir()))]
    if found:
        raise ConfigError(f"--out {out}: holds {', '.join(found)} of something else, which would be written over; choose an empty folder")


def refuse_report_over(report: Path) -> None:
    """ConfigError where a report of a check would be written over what a preparation says of its scans."""
    folder, names = (report.parent, (report.name,)) if report.suffix == ".csv" else (report, OURS)
    if (folder / "preparing.json").exists() and set(names) & set(OURS):
        raise ConfigError(f"--report {report}: is what `medcl3d prepare` wrote; choose another place")


def _with_defaults(origin: dict[str, Any]) -> dict[str, Any]:
    """A source as it was asked for before some of its fields were known: it had their defaults."""
    try:
        fields = SOURCES.schema(origin["name"]).validate_python(dict(origin["fields"])).model_dump(mode="json")
    except (ConfigError, ValueError, KeyError, TypeError):  # it holds what this version refuses: compared as it stands
        return origin
    return {**origin, "fields": json.loads(json.dumps(fields))}


def _clear(store: Path, container: Container) -> None:
    """Nobody reads files of the other kind any more."""
    for path in store.glob(f"*{SUFFIXES[container]}"):
        path.unlink()


def _clear_departed(store: Path, scans: Iterable[str], container: Container) -> list[str]:
    """Remove what is stored of scans that are no longer in the collection, as of a patient who withdrew; a line on how many."""
    kept = {name for scan in scans for name in stored_names(scan, container)}
    ends = (SUFFIXES[container], ".json")
    departed = [path for path in store.iterdir() if path.name not in kept and path.name.endswith(ends)]
    for path in departed:
        path.unlink()
    voxels = sum(path.name.endswith(ends[0]) and not path.name.endswith(f".label{ends[0]}") for path in departed)
    return [f"{voxels} scans are not in the collection any more, or are refused now: what was stored of them was removed"] if voxels else []


def _clear_unlisted(manifest: Manifest) -> None:
    """Remove the files, and links, that were made of scans that the source has no more."""
    listed = {text for column in PATH_COLUMNS if column in manifest.table for text in manifest.table[column]}
    for path in list(manifest.root.rglob("*")):
        if path.name.endswith(VOLUMES) and path.relative_to(manifest.root).as_posix() not in listed:
            path.unlink()
            path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json").unlink(missing_ok=True)


def clear_leftovers(out: Path) -> None:
    """Remove what killed processes left half-written; only whoever holds the lock of the folder may, since nobody else writes there."""
    for folder in (out, out / "store", out / "raw"):
        for path in folder.glob(".*.part"):
            path.unlink(missing_ok=True)


def write_report(path: Path, manifest: Manifest, outcomes: Mapping[str, Outcome]) -> None:
    rows = []
    for row in manifest.table.to_dict("records"):
        outcome = outcomes.get(row["scan"]) or Outcome(row["scan"], "not tried", "stopped before", ())
        warnings = "; ".join(outcome.warnings)
        rows.append([row["scan"], row["patient"], outcome.status, outcome.reason, warnings, row["path"], row["label"]])
    write_text(path, _csv(["scan", "patient", "status", "reason", "warnings", "path", "label"], rows))


def _csv(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    return text.getvalue()


def finish(
    out: Path,
    manifest: Manifest,
    table: pd.DataFrame,
    origin: dict[str, Any],
    options: PrepareOptions,
    outcomes: Mapping[str, Outcome],
    say: Callable[[str], None],
) -> Prepared:
    """Hold the scans against each other, then write what makes the store whole: prepared.json comes last."""
    described = (json.loads((out / "store" / stored_names(s)[2]).read_text()) for s in table["scan"])
    classes, stored = set[int](), []
    for about in described:  # one at a time: all of all scans would take thousands of bytes a scan
        classes.update(int(value) for value in about.get("class_voxels", {}))
        stored.append({name: about[name] for name in ("scan", "shape", *OF_SOURCE) if name in about})
    channels = Counter(s["shape"][0] for s in stored)
    if len(channels) > 1:
        example = {n: next(s["scan"] for s in stored if s["shape"][0] == n) for n in channels}
        raise DataError(f"{out}: scans differ in their number of channels {dict(channels)} (for example {example}); prepare them apart")
    split, moves = split_of(table, options, out)
    warnings = _same_content(stored, table, split)
    names = manifest.label_names or {v: "background" if v == 0 else f"class {v}" for v in sorted(classes)}
    write_text(out / "manifest.csv", _csv(list(table.columns), table.to_numpy().tolist()))
    write_split(out / "split.json", split, options.seed, _drawn(options))
    summary = {
        "schema": SCHEMA,
        "source": origin,
        "num_channels": next(iter(channels)),
        "label_names": names,
        "options": json.loads((out / "store" / stored_names(stored[0]["scan"])[2]).read_text())["options"],
    }
    write_json(out / "prepared.json", summary)
    gone = _clear_departed(out / "store", table["scan"], options.store)
    if manifest.root == out / "raw":
        _clear_unlisted(manifest)
    counts = Counter(o.status for o in outcomes.values())
    there = sum(o.was_there for o in outcomes.values())
    doubts = warnings_told(((scan, outcome.warnings) for scan, outcome in outcomes.items()), len(table))
    left_out = [f"{o.status}: {o.reason}" for o in outcomes.values() if o.status in ("refused", "skipped")]
    for line in (*gone, *moves, *warnings, *_missing_cells(table), *doubts, *reasons_told(left_out)):
        say(line)
    skipped = f", {counts['skipped']} skipped" if counts["skipped"] else ""
    where = f" (all in {out / 'report.csv'})" if left_out or doubts else ""
    done = f"{counts['ok']} scans of {table['patient'].nunique()} patients in {out} ({there} were there)"
    say(f"{done}, {counts['refused']} refused{skipped}{where}")
    return Prepared(counts["ok"], there, counts["refused"], counts["skipped"], warnings)


def _drawn(options: PrepareOptions) -> dict[str, Any]:
    """All that decides how a split is drawn, beside who is there."""
    return {name: getattr(options, name) for name in ("seed", "test_fraction", "validation_fraction", "folds")}


def split_of(table: pd.DataFrame, options: PrepareOptions, out: Path) -> tuple[Split, list[str]]:
    """Who trains and who tests, and lines on who was elsewhere before. DataError where that cannot be.

    Patients keep the sides that `out` has for them, as long as the options that draw them, and no column, say otherwise.
    """
    if options.folds is not None:
        split = make_folds(table, folds=options.folds, seed=options.seed, validation_fraction=options.validation_fraction)
    else:
        fractions = {"test_fraction": options.test_fraction, "validation_fraction": options.validation_fraction}
        split = make_split(table, seed=options.seed, **fractions)
    earlier = read_drawn(out / "split.json")
    if earlier is None:
        return split, []
    before, drawn = earlier
    if drawn == _drawn(options) and not (table["split"] != "").any():
        split = with_known_sides(split, before)
    moved = moved_patients(before, split)
    if not moved:
        return split, []
    named = ", ".join(f"{patient} from {old} to {new}" for patient, old, new in moved[:5]) + (", ..." if len(moved) > 5 else "")
    return split, [f"warning: {len(moved)} patients are on another side of the split than before ({named}); pretrain anew what saw them"]


def _missing_cells(table: pd.DataFrame) -> list[str]:
    """How many scans lack what others have: strategies of metadata leave those out, or learn less from them."""
    names = [name for name in table if name not in (*PATH_COLUMNS, "split") or (name == "label" and (table[name] != "").any())]
    counts = {name: int(table[name].isin(MISSING).sum()) for name in names}
    return [f"{name} is missing in {count} of {len(table)} scans" for name, count in counts.items() if count > 0]


def _same_content(stored: Sequence[dict[str, Any]], table: pd.DataFrame, split: Split) -> tuple[str, ...]:
    """The same voxels under two patients: said; on two sides of the split: DataError, since the test would be no test."""
    side = {patient: name for name, patients in split.parts.items() for patient in patients}
    owner = table["patient"].tolist()
    lines = []
    for what, same in groups_of_one_content(stored):
        patients = {owner[row] for row in same}
        if len(patients) < 2:
            continue
        scans = ", ".join(f"{stored[row]['scan']} of {owner[row]}" for row in same)
        if len(sides := [name for name in split.parts if name in {side[patient] for patient in patients}]) > 1:
            raise DataError(f"{what} is in {' and in '.join(sides)}: {scans}; give both scans one patient, or drop one")
        lines.append(f"{what} under two patients: {scans}")
    return tuple(lines)

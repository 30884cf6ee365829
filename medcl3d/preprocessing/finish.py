"""The files of a prepared folder besides the scans: report, manifest, split, prepared.json."""

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

from medcl3d.core.columns import PATH_COLUMNS
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.core.warning_summary import first_reasons, warnings_told
from medcl3d.datasets.columns import MISSING
from medcl3d.datasets.manifest import Manifest
from medcl3d.datasets.sources import SOURCES
from medcl3d.io.array_file import SUFFIXES, Container
from medcl3d.io.atomic import write_json, write_text
from medcl3d.io.walk import VOLUMES
from medcl3d.preprocessing.options import PrepareOptions
from medcl3d.preprocessing.scan_task import Outcome
from medcl3d.store.content_hashes import OF_SOURCE, duplicate_groups
from medcl3d.store.splits import Split, make_folds, make_split, moved_patients, read_previous_split, with_previous_sides, write_split
from medcl3d.store.stored_scan import SCHEMA, stored_names


@dataclass(frozen=True)
class Prepared:
    """The numbers of scans stored (of which `num_there` were stored before), refused and skipped."""

    num_ok: int
    num_there: int
    num_refused: int
    num_skipped: int
    warnings: tuple[str, ...]


def open_folder(
    out: Path, origin: dict[str, Any], options: dict[str, Any], say: Callable[[str], None]
) -> None:
    """Refuse a folder of another collection; report if options changed, so that all scans are prepared again.

    options: {} if there is no scan to prepare, since nothing depends on them then.
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
                f"{out}: was prepared from {before['source']['name']} {before['source']['root']} "
                f"with {before['source']['fields']}, not from {origin['name']} {origin['root']} "
                f"with {origin['fields']}; choose another folder, or delete that one"
            )
        # Older files have no entry for the container, which was always npy.
        previous = {"store": "npy", **before["options"]} if before["options"] else {}
        options = options or previous
        if previous and previous != options:
            changed = [k for k in options if previous.get(k) != options[k]]
            (out / "prepared.json").unlink(missing_ok=True)  # a half-changed store must not open
            if "store" in changed:
                _remove_arrays(out / "store", previous["store"])
            say(f"{out}: other {', '.join(changed)} than before; all scans are prepared again")
    write_json(started, {"schema": SCHEMA, "source": origin, "options": options})


OUTPUT_NAMES = ("prepared.json", "manifest.csv", "report.csv", "split.json", "store")


def refuse_foreign(out: Path, root: Path | None) -> None:
    """ConfigError if a preparation would overwrite files that it did not write.

    Either `out` was not written by a preparation and has entries with the same names, or its folder `raw`,
    for files converted from the source, contains the source itself.
    """
    if root is not None and root.resolve().is_relative_to(raw := (out / "raw").resolve()):
        raise ConfigError(
            f"--out {out}: would write into {raw}, which contains the source; choose a folder beside it"
        )
    if (out / "preparing.json").exists():
        return
    paths = {name: out / name for name in OUTPUT_NAMES}
    found = [
        name for name, path in paths.items() if path.is_file() or (path.is_dir() and any(path.iterdir()))
    ]
    if found:
        raise ConfigError(
            f"--out {out}: contains {', '.join(found)} that `medcl3d prepare` did not write; "
            "choose an empty folder"
        )


def refuse_report_over(report: Path) -> None:
    """ConfigError if the report of a check would overwrite files of a prepared folder."""
    folder, names = (report.parent, (report.name,)) if report.suffix == ".csv" else (report, OUTPUT_NAMES)
    if (folder / "preparing.json").exists() and set(names) & set(OUTPUT_NAMES):
        raise ConfigError(f"--report {report}: was written by `medcl3d prepare`; choose another path")


def _with_defaults(origin: dict[str, Any]) -> dict[str, Any]:
    """A source description from an earlier version, completed with the defaults of newer fields."""
    try:
        fields = (
            SOURCES.schema(origin["name"]).validate_python(dict(origin["fields"])).model_dump(mode="json")
        )
    except (ConfigError, ValueError, KeyError, TypeError):  # refused by this version: compare it unchanged
        return origin
    return {**origin, "fields": json.loads(json.dumps(fields))}


def _remove_arrays(store: Path, container: Container) -> None:
    """Remove arrays in a container that is no longer used."""
    for path in store.glob(f"*{SUFFIXES[container]}"):
        path.unlink()


def _remove_departed(store: Path, scans: Iterable[str], container: Container) -> list[str]:
    """Remove stored scans that left the collection (a patient withdrew); a note with their number."""
    kept = {name for scan in scans for name in stored_names(scan, container)}
    ends = (SUFFIXES[container], ".json")
    departed = [path for path in store.iterdir() if path.name not in kept and path.name.endswith(ends)]
    for path in departed:
        path.unlink()
    num = sum(path.name.endswith(ends[0]) and not path.name.endswith(f".label{ends[0]}") for path in departed)
    if not num:
        return []
    return [
        f"{num} scans are no longer in the collection, or are refused now: their stored files were removed"
    ]


def _remove_unlisted(manifest: Manifest) -> None:
    """Remove files and links in `raw` of scans that are no longer in the source."""
    listed = {text for column in PATH_COLUMNS if column in manifest.table for text in manifest.table[column]}
    for path in list(manifest.root.rglob("*")):
        if path.name.endswith(VOLUMES) and path.relative_to(manifest.root).as_posix() not in listed:
            path.unlink()
            path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json").unlink(
                missing_ok=True
            )


def remove_partial_files(out: Path) -> None:
    """Remove partial files of killed processes.

    The caller must hold the folder's lock, so that no process writes.
    """
    for folder in (out, out / "store", out / "raw"):
        for path in folder.glob(".*.part"):
            path.unlink(missing_ok=True)


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


def finish(
    out: Path,
    manifest: Manifest,
    table: pd.DataFrame,
    origin: dict[str, Any],
    options: PrepareOptions,
    outcomes: Mapping[str, Outcome],
    say: Callable[[str], None],
) -> Prepared:
    """Compare the scans with each other, then complete the store; prepared.json is written last."""
    described = (json.loads((out / "store" / stored_names(s)[2]).read_text()) for s in table["scan"])
    classes, stored = set[int](), []
    for about in described:  # one at a time, since whole descriptions take thousands of bytes per scan
        classes.update(int(value) for value in about.get("class_voxels", {}))
        stored.append({name: about[name] for name in ("scan", "shape", *OF_SOURCE) if name in about})
    channels = Counter(s["shape"][0] for s in stored)
    if len(channels) > 1:
        example = {n: next(s["scan"] for s in stored if s["shape"][0] == n) for n in channels}
        raise DataError(
            f"{out}: scans differ in their number of channels {dict(channels)} (for example {example}); "
            "prepare them in separate folders"
        )
    split, moves = split_of(table, options, out)
    warnings = _duplicates(stored, table, split)
    names = manifest.label_names or {v: "background" if v == 0 else f"class {v}" for v in sorted(classes)}
    write_text(out / "manifest.csv", _csv(list(table.columns), table.to_numpy().tolist()))
    write_split(out / "split.json", split, options.seed, _draw_options(options))
    summary = {
        "schema": SCHEMA,
        "source": origin,
        "num_channels": next(iter(channels)),
        "label_names": names,
        "options": json.loads((out / "store" / stored_names(stored[0]["scan"])[2]).read_text())["options"],
    }
    write_json(out / "prepared.json", summary)
    departed = _remove_departed(out / "store", table["scan"], options.store)
    if manifest.root == out / "raw":
        _remove_unlisted(manifest)
    counts = Counter(o.status for o in outcomes.values())
    num_there = sum(o.was_there for o in outcomes.values())
    grouped = warnings_told(((scan, outcome.warnings) for scan, outcome in outcomes.items()), len(table))
    left_out = [f"{o.status}: {o.reason}" for o in outcomes.values() if o.status in ("refused", "skipped")]
    for line in (*departed, *moves, *warnings, *_missing_cells(table), *grouped, *first_reasons(left_out)):
        say(line)
    skipped = f", {counts['skipped']} skipped" if counts["skipped"] else ""
    where = f" (all in {out / 'report.csv'})" if left_out or grouped else ""
    done = f"{counts['ok']} scans of {table['patient'].nunique()} patients in {out}"
    say(f"{done} ({num_there} already prepared), {counts['refused']} refused{skipped}{where}")
    return Prepared(counts["ok"], num_there, counts["refused"], counts["skipped"], warnings)


def _draw_options(options: PrepareOptions) -> dict[str, Any]:
    """The options that determine how a split is drawn from the patients."""
    return {
        name: getattr(options, name) for name in ("seed", "test_fraction", "validation_fraction", "folds")
    }


def split_of(table: pd.DataFrame, options: PrepareOptions, out: Path) -> tuple[Split, list[str]]:
    """The split, and warnings on patients whose side changed. DataError if no valid split exists.

    Patients keep their side in the split.json of `out` if the options that draw it are unchanged and the
    manifest has no column `split`.
    """
    if options.folds is not None:
        validation_fraction = options.validation_fraction
        split = make_folds(
            table, folds=options.folds, seed=options.seed, validation_fraction=validation_fraction
        )
    else:
        fractions = {
            "test_fraction": options.test_fraction,
            "validation_fraction": options.validation_fraction,
        }
        split = make_split(table, seed=options.seed, **fractions)
    earlier = read_previous_split(out / "split.json")
    if earlier is None:
        return split, []
    before, drawn = earlier
    if drawn == _draw_options(options) and not (table["split"] != "").any():
        split = with_previous_sides(split, before)
    moved = moved_patients(before, split)
    if not moved:
        return split, []
    named = ", ".join(f"{patient} from {old} to {new}" for patient, old, new in moved[:5])
    named += ", ..." if len(moved) > 5 else ""
    return split, [
        f"warning: {len(moved)} patients are on another side of the split than before ({named}); "
        "repeat pretraining that used them"
    ]


def _missing_cells(table: pd.DataFrame) -> list[str]:
    """Notes on columns with missing values, which metadata strategies ignore or learn less from."""
    has_labels = (table["label"] != "").any()
    names = [
        name for name in table if name not in (*PATH_COLUMNS, "split") or (name == "label" and has_labels)
    ]
    counts = {name: int(table[name].isin(MISSING).sum()) for name in names}
    return [
        f"{name} is missing in {count} of {len(table)} scans" for name, count in counts.items() if count > 0
    ]


def _duplicates(stored: Sequence[dict[str, Any]], table: pd.DataFrame, split: Split) -> tuple[str, ...]:
    """Warnings on the same voxels under two patients.

    DataError on two sides of the split, since that leaks test data.
    """
    side = {patient: name for name, patients in split.parts.items() for patient in patients}
    owner = table["patient"].tolist()
    lines = []
    for what, rows in duplicate_groups(stored):
        patients = {owner[row] for row in rows}
        if len(patients) < 2:
            continue
        scans = ", ".join(f"{stored[row]['scan']} of {owner[row]}" for row in rows)
        if (
            len(sides := [name for name in split.parts if name in {side[patient] for patient in patients}])
            > 1
        ):
            raise DataError(
                f"{what} is in {' and in '.join(sides)}: {scans}; "
                "give both scans the same patient, or remove one"
            )
        lines.append(f"{what} under two patients: {scans}")
    return tuple(lines)

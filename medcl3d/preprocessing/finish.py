"""The files of a prepared folder besides the scans: report, manifest, split, prepared.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medcl3d.core.columns import PATH_COLUMNS
from medcl3d.core.errors import DataError
from medcl3d.core.warning_summary import first_reasons, summarise_warnings
from medcl3d.datasets.columns import MISSING
from medcl3d.datasets.manifest import Manifest
from medcl3d.io.atomic import write_json, write_text
from medcl3d.preprocessing.body_frame import partial_atlas, register_bodies
from medcl3d.preprocessing.options import PrepareOptions
from medcl3d.preprocessing.output_folder import remove_departed, remove_unlisted
from medcl3d.preprocessing.scan_task import Outcome
from medcl3d.store.content_hashes import OF_SOURCE, duplicate_groups
from medcl3d.store.splits import (
    Split,
    make_folds,
    make_split,
    moved_patients,
    read_previous_split,
    with_previous_sides,
    write_split,
)
from medcl3d.store.stored_scan import REGISTERED, SCHEMA, read_description


@dataclass(frozen=True)
class Prepared:
    """The numbers of scans stored (of which `num_unchanged` were stored before), refused and skipped."""

    num_ok: int
    num_unchanged: int
    num_refused: int
    num_skipped: int
    warnings: tuple[str, ...]


def _draw_options(options: PrepareOptions) -> dict[str, Any]:
    """The options that determine how a split is drawn from the patients."""
    names = ("seed", "test_fraction", "validation_fraction", "folds")
    drawn = {name: getattr(options, name) for name in names}
    # Left out by default, as by earlier versions, so that the patients of their stores keep their sides.
    return drawn | ({} if options.unlabelled == "split" else {"unlabelled": options.unlabelled})


def split_of(table: pd.DataFrame, options: PrepareOptions, out: Path) -> tuple[Split, list[str]]:
    """The split, and warnings on patients whose side changed. DataError if no valid split exists.

    Patients keep their side in the split.json of `out` if the options that draw it are unchanged and the
    manifest has no column `split`.
    """
    seed, fraction = options.seed, options.validation_fraction
    if options.folds is not None:
        split = make_folds(table, folds=options.folds, seed=seed, validation_fraction=fraction)
    else:
        split = make_split(
            table,
            test_fraction=options.test_fraction,
            seed=seed,
            validation_fraction=fraction,
            unlabelled=options.unlabelled,
        )
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
    warning = f"warning: {len(moved)} patients are on another side of the split than before ({named})"
    return split, [f"{warning}; repeat pretraining that used them"]


def write_report(path: Path, manifest: Manifest, outcomes: Mapping[str, Outcome]) -> None:
    """Write report.csv, one row per scan."""
    not_tried = Outcome("", "not tried", "stopped before", ())
    of_scans = [outcomes.get(scan, not_tried) for scan in manifest.table["scan"]]
    table = manifest.table.assign(
        status=[outcome.status for outcome in of_scans],
        reason=[outcome.reason for outcome in of_scans],
        warnings=["; ".join(outcome.warnings) for outcome in of_scans],
    )
    columns = ["scan", "patient", "status", "reason", "warnings", "path", "label"]
    write_text(path, table[columns].to_csv(index=False, lineterminator="\n"))


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
    classes, stored = set[int](), []
    for scan in table["scan"]:
        about = read_description(out, scan)  # not kept, since it takes thousands of bytes
        classes.update(int(value) for value in about.get("class_voxels", {}))
        stored.append({name: about[name] for name in ("scan", "shape", *OF_SOURCE) if name in about})
    channels = Counter(s["shape"][0] for s in stored)
    if len(channels) > 1:
        example = {n: next(s["scan"] for s in stored if s["shape"][0] == n) for n in channels}
        problem = f"scans differ in their number of channels {dict(channels)} (for example {example})"
        raise DataError(out, problem, "prepare them in separate folders")
    split, moves = split_of(table, options, out)
    warnings = _duplicates(stored, table, split)
    names = manifest.label_names or {v: "background" if v == 0 else f"class {v}" for v in sorted(classes)}
    (out / "prepared.json").unlink(missing_ok=True)  # a half-changed store must not open
    write_text(out / "manifest.csv", table.to_csv(index=False, lineterminator="\n"))
    write_split(out / "split.json", split, options.seed, _draw_options(options))
    if options.body_coordinates == "affine":
        register_bodies(out, table, split.train, options.workers, say)
    else:
        (out / REGISTERED).unlink(missing_ok=True)
    summary = {
        "schema": SCHEMA,
        "source": origin,
        "num_channels": next(iter(channels)),
        "label_names": names,
        "options": read_description(out, stored[0]["scan"])["options"],
    }
    write_json(out / "prepared.json", summary)
    departed = remove_departed(out / "store", table["scan"], options.store)
    if manifest.root == out / "raw":
        remove_unlisted(manifest)
    counts = Counter(o.status for o in outcomes.values())
    num_unchanged = sum(o.was_unchanged for o in outcomes.values())
    grouped = summarise_warnings(((scan, outcome.warnings) for scan, outcome in outcomes.items()), len(table))
    left_out = [f"{o.status}: {o.reason}" for o in outcomes.values() if o.status in ("refused", "skipped")]
    for line in (
        *departed,
        *moves,
        *warnings,
        *partial_atlas(table),
        *_missing_cells(table),
        *grouped,
        *first_reasons(left_out),
    ):
        say(line)
    skipped = f", {counts['skipped']} skipped" if counts["skipped"] else ""
    where = f" (all in {out / 'report.csv'})" if left_out or grouped else ""
    done = f"{counts['ok']} scans of {table['patient'].nunique()} patients in {out}"
    say(f"{done} ({num_unchanged} already prepared), {counts['refused']} refused{skipped}{where}")
    return Prepared(counts["ok"], num_unchanged, counts["refused"], counts["skipped"], warnings)


def _missing_cells(table: pd.DataFrame) -> list[str]:
    """Notes on columns with missing values, which metadata strategies ignore or learn less from."""
    has_labels = (table["label"] != "").any()
    ignored = {*PATH_COLUMNS, "split"} - ({"label"} if has_labels else set())
    counts = {name: int(table[name].isin(MISSING).sum()) for name in table if name not in ignored}
    return [f"{name} is missing in {count} of {len(table)} scans" for name, count in counts.items() if count]


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
        sides = [name for name in split.parts if name in {side[patient] for patient in patients}]
        if len(sides) > 1:
            problem = f"{what} is in {' and in '.join(sides)}: {scans}"
            raise DataError("", problem, "give both scans the same patient, or remove one")
        lines.append(f"{what} under two patients: {scans}")
    return tuple(lines)

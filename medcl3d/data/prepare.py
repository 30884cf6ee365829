"""From a source to a store: every scan checked, brought to one form, written once, and reported."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from medcl3d.data.array_file import SUFFIXES, Container, import_blosc2
from medcl3d.data.atomic import write_json, write_text
from medcl3d.data.intensity import Kind
from medcl3d.data.manifest import MISSING, PATH_COLUMNS, Manifest
from medcl3d.data.nifti import read_header
from medcl3d.data.packing import StoreAs
from medcl3d.data.scan import SCHEMA, Crop, LabelInterpolation, Outcome, ScanTask, stored_names
from medcl3d.data.sources import SOURCES
from medcl3d.data.splits import Split, make_folds, make_split, write_split
from medcl3d.data.workers import run_tasks
from medcl3d.errors import ConfigError, DataError, MachineError
from medcl3d.registry import Choice, Fraction, Positive

Spacing = Literal["keep", "median"] | tuple[Positive, Positive, Positive]
Percent = Annotated[float, Field(ge=0, le=100)]


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class PrepareOptions:
    """How scans are brought to one form.

    assume_spacing_mm the voxel size, along the file's own axes, of files whose headers have lost it
    spacing_mm        keep, median (of the collection, per axis), or three numbers
    intensity         mri, ct or none; auto: ct where the modality says CT, else mri
    percentiles       between which MR intensities are clipped
    window_hu         what CT intensities are clipped to
    nonfinite         NaN and infinity: error, zero (counted), or skip the scan
    channels          a fourth axis: error, all (channels), or first
    crop              none, or body: what lies outside the body's box is not stored
    label_interpolation  of label maps where scans are resampled: nearest, or linear (the class with the largest interpolated share)
    store_as          float16, or int16 with a scale a scan: finer, and whole numbers stay whole
    store             npy, read as memory maps; or blosc2, compressed: a half to a third on the disk, and crops cost more processor time
    test_fraction     of the patients, where the manifest has no split
    validation_fraction  of the patients too: they train nothing, and choices are made on them (`measured_on: validation`)
    folds             2 or more: the patients are dealt out to as many folds, in the place of test_fraction (`data.fold: 0` tests the first)
    max_bad_fraction  of the scans that may be refused before it stops; one may be in any case
    workers           processes; 0: as many as there are processors, up to 8
    """

    assume_spacing_mm: tuple[Positive, Positive, Positive] | None = None
    spacing_mm: Spacing = "keep"
    intensity: Literal["auto", "mri", "ct", "none"] = "auto"
    percentiles: tuple[Percent, Percent] = (0.5, 99.5)
    window_hu: tuple[float, float] = (-1000.0, 1000.0)
    nonfinite: Literal["error", "zero", "skip"] = "error"
    channels: Literal["error", "all", "first"] = "error"
    crop: Crop = "none"
    label_interpolation: LabelInterpolation = "nearest"
    store_as: StoreAs = "float16"
    store: Container = "npy"
    test_fraction: Fraction = 0.25
    validation_fraction: Fraction = 0.0
    folds: Annotated[int, Field(ge=2)] | None = None
    max_bad_fraction: Fraction = 0.01
    seed: Annotated[int, Field(ge=0)] = 0
    workers: Annotated[int, Field(ge=0, le=256)] = 0

    def __post_init__(self) -> None:
        for name in ("percentiles", "window_hu"):
            low, high = getattr(self, name)
            if low >= high:
                raise ValueError(f"{name}: the first, {low}, must be below the second, {high}")


@dataclass(frozen=True)
class Prepared:
    """What a preparation came to: scans stored, of which some were there already; scans refused and skipped."""

    num_ok: int
    num_there: int
    num_refused: int
    num_skipped: int
    warnings: tuple[str, ...]


def prepare(
    source: str,
    root: Path | None,
    out: Path,
    *,
    fields: Mapping[str, Any] | None = None,
    options: PrepareOptions | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Prepared:
    """Prepare a collection: `out` gets manifest.csv, report.csv, split.json and store/.

    source  name of a source, its `fields` beside it
    root    where its files lie; None for `simulated`, which then writes them to ``out/raw``
    say     gets lines for a person

    The same command again does what is missing or changed. Raises ConfigError, MachineError, and
    DataError where more files are bad than `max_bad_fraction` allows (the report is written before).
    """
    from filelock import FileLock, Timeout

    options = options or PrepareOptions()
    choice = _choice(source, fields or {})
    if options.store == "blosc2":
        import_blosc2("store=blosc2")
    if root is None and source != "simulated":
        raise ConfigError(f"source {source}: ROOT is missing; only simulated makes its own files")
    try:
        (out / "store").mkdir(parents=True, exist_ok=True)
        with FileLock(out / ".lock", timeout=0):
            manifest: Manifest = SOURCES.build(choice, *_folders(source, root, out / "raw"))
            read = manifest.root if root is None or manifest.root != out / "raw" else Path(root)
            origin = {"name": choice.name, "fields": json.loads(json.dumps(choice.fields)), "root": str(read.resolve())}
            return _prepare(manifest, origin, out, options, say)
    except Timeout:
        raise MachineError(f"{out}: another process is preparing this folder; wait for it, or choose another") from None
    except OSError as error:
        raise MachineError(f"{error.filename or out}: {error.strerror or error}; choose a folder that can be written") from None


def _folders(source: str, root: Path | None, raw: Path) -> tuple[Path, ...]:
    """What a source is called with: the folder it reads, and for one that writes its scans the folder for them."""
    places = [p for p in signature(SOURCES.get(source)).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    return (raw if root is None else Path(root), raw)[: len(places)]


def _choice(source: str, fields: Mapping[str, Any]) -> Choice:
    if source not in SOURCES.names():
        raise ConfigError(f"source {source!r} is unknown; there are {', '.join(SOURCES.names())}")
    try:
        return Choice(source, SOURCES.schema(source).validate_python(dict(fields)).model_dump())
    except ValueError as error:
        raise ConfigError(f"source {source}: {' '.join(str(error).split())}") from None


def _prepare(manifest: Manifest, origin: dict[str, Any], out: Path, options: PrepareOptions, say: Callable[[str], None]) -> Prepared:
    allowed = max(1, int(options.max_bad_fraction * len(manifest)))
    missing = manifest.missing()
    if len(missing) > allowed:
        raise DataError(f"{manifest.say_missing(missing)}; correct the paths, or raise max_bad_fraction")
    unmade = {scan: Outcome(scan, "refused", reason, ()) for scan, reason in manifest.faults.items()}
    tasks = [task for task in _tasks(manifest, options) if task.scan not in unmade]
    for note in manifest.notes:
        say(note)
    outcomes: dict[str, Outcome] = unmade
    if tasks:
        _open_folder(out, origin, {**tasks[0].options(), "store": options.store}, say)
        outcomes = {**unmade, **run_tasks(tasks, out / "store", options.workers, allowed - len(unmade))}
    _report(out / "report.csv", manifest, outcomes)
    bad = [o for o in outcomes.values() if o.status == "refused"]
    if len(bad) > allowed:
        raise DataError(
            f"{len(bad)} of {len(manifest)} scans were refused, {allowed} may be: {bad[0].reason} "
            f"(all in {out / 'report.csv'}); repair them, or raise max_bad_fraction"
        )
    table = manifest.table[[outcomes[s].status == "ok" for s in manifest.table["scan"]]]
    if not len(table):
        raise DataError(f"{out}: no scan is left; see {out / 'report.csv'}")
    return _finish(out, manifest, table, origin, options, outcomes, say)


def _tasks(manifest: Manifest, options: PrepareOptions) -> list[ScanTask]:
    table = manifest.table
    images = [manifest.locate(p) for p in table["path"]]
    atlases = table["atlas"] if "atlas" in table else [""] * len(table)
    spacing = None if isinstance(options.spacing_mm, str) else options.spacing_mm
    if options.spacing_mm == "median" and options.assume_spacing_mm is None:  # assumed: all files have one
        spacing = _median_spacing(images)
    return [
        ScanTask(
            scan=scan,
            image=image,
            label=manifest.locate(label) if label else None,
            atlas=manifest.locate(atlas) if atlas else None,
            kind=_kind(modality, options.intensity),
            classes=tuple(sorted(manifest.label_names)),
            assume_spacing_mm=options.assume_spacing_mm,
            spacing_mm=spacing,
            nonfinite=options.nonfinite,
            channels=options.channels,
            percentiles=options.percentiles,
            window_hu=options.window_hu,
            crop=options.crop,
            label_interpolation=options.label_interpolation,
            store_as=options.store_as,
            store=options.store,
        )
        for scan, image, label, atlas, modality in zip(table["scan"], images, table["label"], atlases, table["modality"], strict=True)
    ]


def _kind(modality: str, intensity: Literal["auto", "mri", "ct", "none"]) -> Kind:
    if intensity != "auto":
        return intensity
    return "ct" if modality.upper() == "CT" else "mri"


def _median_spacing(images: Sequence[Path]) -> tuple[float, float, float]:
    """Per RAS axis, over the scans whose headers are good; the others are refused later."""
    from nibabel.orientations import io_orientation

    found = []
    for path in images:
        try:
            header = read_header(path)
        except DataError:
            continue
        axis = io_orientation(header.affine)[:, 0].astype(int)
        found.append(header.spacing_mm[np.argsort(axis)])
    if not found:
        raise DataError(f"{images[0].parent}: no file there has a readable header, so there is no median spacing")
    x, y, z = np.median(found, axis=0).round(4).tolist()
    return x, y, z


def _open_folder(out: Path, origin: dict[str, Any], options: dict[str, Any], say: Callable[[str], None]) -> None:
    """Refuse a folder that holds another collection; say so where options changed and all is done again."""
    started = out / "preparing.json"
    try:
        before = json.loads(started.read_text())
    except FileNotFoundError:
        before = None
    except ValueError:
        raise DataError(f"{started}: is damaged; delete {out} and prepare again") from None
    if before is not None:
        if before["source"] != origin:
            raise ConfigError(
                f"{out}: was prepared from {before['source']['name']} {before['source']['root']} with {before['source']['fields']}, "
                f"not from {origin['name']} {origin['root']} with {origin['fields']}; choose another folder, or delete that one"
            )
        of_then = {"store": "npy", **before["options"]}  # before there was blosc2, nothing was said of it
        if of_then != options:
            changed = [k for k in options if of_then.get(k) != options[k]]
            (out / "prepared.json").unlink(missing_ok=True)  # a half-changed store must not open
            if "store" in changed:
                _clear(out / "store", of_then["store"])
            say(f"{out}: other {', '.join(changed)} than before; all scans are prepared again")
    write_json(started, {"schema": SCHEMA, "source": origin, "options": options})


def _clear(store: Path, container: Container) -> None:
    """Nobody reads files of the other kind any more, nor what a killed process left half-written."""
    for pattern in (f"*{SUFFIXES[container]}", ".*.part"):
        for path in store.glob(pattern):
            path.unlink()


def _report(path: Path, manifest: Manifest, outcomes: Mapping[str, Outcome]) -> None:
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


def _finish(
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
        stored.append({name: about[name] for name in ("scan", "shape", "sha256")})
    channels = Counter(s["shape"][0] for s in stored)
    if len(channels) > 1:
        example = {n: next(s["scan"] for s in stored if s["shape"][0] == n) for n in channels}
        raise DataError(f"{out}: scans differ in their number of channels {dict(channels)} (for example {example}); prepare them apart")
    split = _split(table, options)
    warnings = _same_content(stored, table, split)
    names = manifest.label_names or {v: "background" if v == 0 else f"class {v}" for v in sorted(classes)}
    write_text(out / "manifest.csv", _csv(list(table.columns), table.to_numpy().tolist()))
    write_split(out / "split.json", split, options.seed)
    summary = {
        "schema": SCHEMA,
        "source": origin,
        "num_channels": next(iter(channels)),
        "label_names": names,
        "options": json.loads((out / "store" / stored_names(stored[0]["scan"])[2]).read_text())["options"],
    }
    write_json(out / "prepared.json", summary)
    counts = Counter(o.status for o in outcomes.values())
    there = sum(o.was_there for o in outcomes.values())
    for line in (*warnings, *_missing_cells(table)):
        say(line)
    say(f"{counts['ok']} scans of {table['patient'].nunique()} patients in {out} ({there} were there), {counts['refused']} refused")
    return Prepared(counts["ok"], there, counts["refused"], counts["skipped"], warnings)


def _split(table: pd.DataFrame, options: PrepareOptions) -> Split:
    if options.folds is not None:
        return make_folds(table, folds=options.folds, seed=options.seed, validation_fraction=options.validation_fraction)
    return make_split(table, test_fraction=options.test_fraction, seed=options.seed, validation_fraction=options.validation_fraction)


def _missing_cells(table: pd.DataFrame) -> list[str]:
    """How many scans lack what others have: strategies of metadata leave those out, or learn less from them."""
    counts = {name: int(table[name].isin(MISSING).sum()) for name in table if name not in (*PATH_COLUMNS, "split")}
    return [f"{name} is missing in {count} of {len(table)} scans" for name, count in counts.items() if count > 0]


def _same_content(stored: Sequence[dict[str, Any]], table: pd.DataFrame, split: Split) -> tuple[str, ...]:
    """The same voxels under two patients: said; on two sides of the split: DataError, since the test would be no test."""
    side = {patient: name for name, patients in split.parts.items() for patient in patients}
    by_hash: dict[str, list[tuple[str, str]]] = {}
    for description, patient in zip(stored, table["patient"], strict=True):
        by_hash.setdefault(description["sha256"], []).append((description["scan"], patient))
    lines = []
    for same in by_hash.values():
        patients = {p for _, p in same}
        if len(patients) < 2:
            continue
        scans = ", ".join(f"{scan} of {patient}" for scan, patient in same)
        if len(sides := [name for name in split.parts if name in {side[patient] for patient in patients}]) > 1:
            raise DataError(f"the same file is in {' and in '.join(sides)}: {scans}; give both scans one patient, or drop one")
        lines.append(f"the same file under two patients: {scans}")
    return tuple(lines)

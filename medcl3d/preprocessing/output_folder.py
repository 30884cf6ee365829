"""The output folder of `prepare`: what it holds, and files of earlier preparations that are removed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from medcl3d.core.columns import PATH_COLUMNS
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.datasets.manifest import Manifest
from medcl3d.datasets.sources import SOURCES
from medcl3d.io.array_file import SUFFIXES, Container
from medcl3d.io.atomic import write_json
from medcl3d.io.walk import VOLUMES
from medcl3d.store.stored_scan import SCHEMA, stored_names


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
        raise DataError(started, "is damaged", f"delete {out} and prepare again") from None
    if before is not None:
        if _with_defaults(before["source"]) != origin:
            then, now = ("{name} {root} with {fields}".format(**of) for of in (before["source"], origin))
            remedy = "choose another folder, or delete that one"
            raise ConfigError(problem=f"was prepared from {then}, not from {now}", remedy=remedy, place=out)
        # Older files have no entry for the container, which was always npy.
        previous = {"store": "npy", **before["options"]} if before["options"] else {}
        options = options or previous
        if previous and previous != options:
            changed = [k for k in options if previous.get(k) != options[k]]
            (out / "prepared.json").unlink(missing_ok=True)  # a half-changed store must not open
            if "store" in changed:
                for path in (out / "store").glob(f"*{SUFFIXES[previous['store']]}"):
                    path.unlink()
            say(f"{out}: other {', '.join(changed)} than before; all scans are prepared again")
    write_json(started, {"schema": SCHEMA, "source": origin, "options": options})


OUTPUT_NAMES = ("prepared.json", "registered.json", "manifest.csv", "report.csv", "split.json", "store")


def refuse_foreign(out: Path, root: Path | None) -> None:
    """ConfigError if a preparation would overwrite files that it did not write.

    Either `out` was not written by a preparation and has entries with the same names, or its folder `raw`,
    for files converted from the source, contains the source itself.
    """
    if root is not None and root.resolve().is_relative_to(raw := (out / "raw").resolve()):
        problem = f"would write into {raw}, which contains the source"
        raise ConfigError(problem=problem, remedy="choose a folder beside it", place=f"--out {out}")
    if (out / "preparing.json").exists():
        return
    paths = [out / name for name in OUTPUT_NAMES]
    found = [path.name for path in paths if path.is_file() or (path.is_dir() and any(path.iterdir()))]
    if found:
        problem = f"contains {', '.join(found)} that `medcl3d prepare` did not write"
        raise ConfigError(problem=problem, remedy="choose an empty folder", place=f"--out {out}")


def refuse_report_over(report: Path) -> None:
    """ConfigError if the report of a check would overwrite files of a prepared folder."""
    folder, names = (report.parent, (report.name,)) if report.suffix == ".csv" else (report, OUTPUT_NAMES)
    if (folder / "preparing.json").exists() and set(names) & set(OUTPUT_NAMES):
        problem = "was written by `medcl3d prepare`"
        raise ConfigError(problem=problem, remedy="choose another path", place=f"--report {report}")


def _with_defaults(origin: dict[str, Any]) -> dict[str, Any]:
    """A source description from an earlier version, completed with the defaults of newer fields."""
    try:
        validated = SOURCES.schema(origin["name"]).validate_python(dict(origin["fields"]))
        fields = validated.model_dump(mode="json")
    except (ConfigError, ValueError, KeyError, TypeError):  # refused by this version: compare it unchanged
        return origin
    return {**origin, "fields": json.loads(json.dumps(fields))}


def remove_departed(store: Path, scans: Iterable[str], container: Container) -> list[str]:
    """Remove stored scans that left the collection (a patient withdrew); a note with their number."""
    kept = {name for scan in scans for name in stored_names(scan, container)}
    ends = (SUFFIXES[container], ".json")
    departed = [path for path in store.iterdir() if path.name not in kept and path.name.endswith(ends)]
    for path in departed:
        path.unlink()
    num = sum(path.name.endswith(ends[0]) and not path.name.endswith(f".label{ends[0]}") for path in departed)
    note = f"{num} scans are no longer in the collection, or are refused now: their stored files were removed"
    return [note] if num else []


def remove_unlisted(manifest: Manifest) -> None:
    """Remove files and links in `raw` of scans that left the source; targets of links are kept."""
    listed = {text for column in PATH_COLUMNS if column in manifest.table for text in manifest.table[column]}
    targets = {(manifest.root / text).resolve() for text in listed if text}
    for path in list(manifest.root.rglob("*")):
        if not path.name.endswith(VOLUMES) or (not path.is_symlink() and path.resolve() in targets):
            continue
        if path.relative_to(manifest.root).as_posix() not in listed:
            path.unlink()
            stem = path.name.removesuffix(".gz").removesuffix(".nii")
            path.with_name(f"{stem}.json").unlink(missing_ok=True)

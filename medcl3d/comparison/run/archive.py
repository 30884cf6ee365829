"""Archive of a comparison's finished runs: one small file from which its report can be made again."""

from __future__ import annotations

import json
import lzma
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.preregistration import PREREGISTRATION, declarations_of, file_beside
from medcl3d.comparison.plan.runs import Run
from medcl3d.comparison.run.finished_runs import UNPACKED, finished, is_done, measured_before
from medcl3d.comparison.run.launch import COST
from medcl3d.core.errors import DataError
from medcl3d.downstream.results import INIT
from medcl3d.io.atomic import open_atomic, write_text
from medcl3d.io.yaml_file import read_yaml
from medcl3d.pretraining.embedding_export import SCORES
from medcl3d.pretraining.pair_audit import PAIR_AUDIT

SUFFIX = ".jsonl.xz"
RESULTS, PROVENANCE, METRICS, STATUS = "results.json", "provenance.json", "metrics.jsonl", "status.json"
FILES = ("config.yaml", STATUS, RESULTS, PROVENANCE, METRICS, COST, SCORES, PAIR_AUDIT, INIT)
OF_THE_MACHINE = {PROVENANCE: ("command",), STATUS: ("host", "pid")}  # entries that do not stay
IDENTIFYING = ("probe", "scan", "patient", "class", "predicted", "probability")  # columns of a case that stay


def is_archive(path: Path) -> bool:
    """Whether a path names an archive."""
    return path.name.endswith(SUFFIX)


def pack(runs: Sequence[Run], config: CompareConfig, path: Path) -> int:
    """Write the finished runs to `path`, atomically, and return their number.

    Of each run the configuration, all metrics, the declared metrics of each case, the loss and the online
    probe of each logged step, provenance and cost; no weights, pictures, features, or names and paths of this
    machine. Of results that were set aside, only that they existed.
    """
    lines = []
    for run in finished(runs):
        files = {name: (run.folder / name) for name in FILES if (run.folder / name).is_file()}
        texts = {name: _kept(name, file.read_text("utf-8"), config) for name, file in files.items()}
        inside = run.folder.resolve().relative_to((run.moved_to or config.out_dir).resolve())
        lines.append({"folder": inside.as_posix(), "files": texts})
        lines += [
            {"folder": inside.with_name(before.name).as_posix(), "files": {RESULTS: "{}"}}
            for before in measured_before(run)
        ]
    number = sum("config.yaml" in line["files"] for line in lines)
    if declared := declarations_of(runs, config):
        folder = config.report_dir.relative_to(config.out_dir).as_posix()
        rows = "".join(json.dumps(row) + "\n" for row in declared)
        lines.append({"folder": folder, "files": {PREREGISTRATION: rows}})
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_atomic(path) as file:
        file.write(lzma.compress(text.encode(), preset=9))
    return number


def unpack(path: Path, folder: Path) -> Path:
    """Write the runs of an archive below `folder`, which is replaced; returns it.

    DataError: the archive is missing, damaged, or names a path outside the folder.
    """
    try:
        rows = [json.loads(line) for line in lzma.decompress(path.read_bytes()).decode().splitlines()]
        files = {Path(row["folder"], name): text for row in rows for name, text in row["files"].items()}
    except (OSError, lzma.LZMAError, ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = "copy it again, or write it again with --pack"
        raise DataError(path, f"not an archive of runs: {error}", remedy) from None
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in files.items():
        if name.is_absolute() or ".." in name.parts:
            raise DataError(path, f"names a path outside the archive: {name}", "do not use it")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_text(folder / name, text)
    return folder


def restore(path: Path, runs: Sequence[Run], config: CompareConfig) -> int:
    """Write the finished runs of an archive to their planned folders, and return their number.

    Folders that hold a run are kept. A pretraining of which a measurement is missing is left out with all of
    its measurements, since an archive has no weights. DataError as in `unpack`.
    """
    unpacked = unpack(path, config.out_dir / UNPACKED / path.name)
    packed = {run.folder: unpacked / run.folder.relative_to(config.out_dir) for run in runs}
    restored = {folder: place for folder, place in packed.items() if (place / "config.yaml").is_file()}
    again = {
        run.needs
        for run in runs
        if not is_done(run) and (run.folder not in restored or (run.folder / "config.yaml").exists())
    } - {None}
    number = 0
    for run in runs:
        folder, place = run.folder, restored.get(run.folder)
        if place is None or again & {folder, run.needs} or (folder / "config.yaml").exists():
            continue
        shutil.rmtree(folder, ignore_errors=True)  # a log without a run
        folder.parent.mkdir(parents=True, exist_ok=True)
        _set_paths(place / "config.yaml", run, config)
        for before in measured_before(replace(run, folder=place)):
            before.rename(folder.with_name(before.name))
        place.rename(folder)
        number += 1
    declared = file_beside(runs, config)
    there = unpacked / declared.relative_to(config.out_dir)
    if there.is_file() and not declared.exists():
        declared.parent.mkdir(parents=True, exist_ok=True)
        there.rename(declared)
    shutil.rmtree(unpacked)
    return number


def _set_paths(file: Path, run: Run, config: CompareConfig) -> None:
    """Replace the paths of the comparison that wrote a run by those of this one, if they are the same below
    `out_dir`.
    """
    written = read_yaml(file)
    planned = {"out_dir": run.folder} if run.needs is None else {"out_dir": run.folder, "init": run.needs}
    for name, path in planned.items():
        inside = path.relative_to(config.out_dir).parts
        if Path(str(written.get(name))).parts[-len(inside) :] == inside:
            written[name] = run.planned[name]
    write_text(file, yaml.safe_dump(written, sort_keys=False))


def _kept(name: str, text: str, config: CompareConfig) -> str:
    """The part of a file that a report reads."""
    if name == RESULTS:
        results = json.loads(text)
        results["cases"] = _cases(results.get("cases", []), config)
        return json.dumps(results)
    if name in OF_THE_MACHINE:
        return json.dumps(
            {key: value for key, value in json.loads(text).items() if key not in OF_THE_MACHINE[name]}
        )
    if name == METRICS:
        rows = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
        kept = [
            {key: value for key, value in row.items() if key in ("step", "loss") or key.startswith("probe")}
            for row in rows
        ]
        return "".join(json.dumps(row) + "\n" for row in kept)
    return text


def _cases(cases: Sequence[Mapping[str, Any]], config: CompareConfig) -> list[dict[str, Any]]:
    """The rows and columns of the declared metrics (named as in `case_values.by_patient`)."""
    metrics = [config.metric, *(one.metric for one in config.later)]
    columns = {*IDENTIFYING, *metrics, *(part for m in metrics if "/" in m for part in m.split("/", 1))}
    probes = {metric.split("/", 1)[0] for metric in metrics}
    rows = [case for case in cases if "probe" not in case or case["probe"] in probes]
    return [{key: value for key, value in row.items() if key in columns} for row in rows]

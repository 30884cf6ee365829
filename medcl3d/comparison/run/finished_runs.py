"""Runs of a plan that are done, that wait, and that were measured before their pretraining was continued."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from medcl3d.comparison.plan.runs import Run, model_of
from medcl3d.comparison.run.launch import INPUTS, encoder_hash
from medcl3d.config.plain import Difference, listed
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.io.json_file import read_record
from medcl3d.io.yaml_file import read_yaml
from medcl3d.training.run_record import is_extension, other_fields, with_defaults

FORMER = "_of_"
"""Between the name of a run folder and what its former content was measured from."""
UNPACKED = "unpacked"
"""Folder of a comparison for the content of archives."""


def is_done(run: Run) -> bool:
    """Whether the run's folder holds this run, finished. A field that is newer than the run counts with its
    default.

    A run with fewer training steps than planned is not done, and a measurement of its encoder neither.
    ConfigError if the folder holds another run, or one that started from another encoder; DataError if its
    files are damaged.
    """
    config_file = run.folder / "config.yaml"
    if not config_file.is_file() or _is_shorter(run, config_file):
        return False
    if read_record(run.folder / "status.json").get("state") != "done":
        return False
    if run.measures and not (run.folder / "results.json").is_file():
        problem = "the run is done but results.json is missing"
        raise DataError(run.folder, problem, "delete the folder to run it again")
    if run.needs is not None and _measured_another(run):
        if is_extended(run.needs):
            return False
        problem = f"started from another encoder than the current one in {run.needs}"
        raise ConfigError(problem=f"{problem}. Delete the folder to run it again", place=run.folder)
    return True


def _is_shorter(run: Run, config_file: Path) -> bool:
    """Whether a folder holds the planned run with fewer training steps.

    ConfigError if it holds another run; moved runs may differ in paths only.
    """
    try:
        found = read_yaml(config_file)
    except (OSError, ValueError, yaml.YAMLError) as error:
        problem = f"is damaged ({' '.join(str(error).split())})"
        raise DataError(config_file, problem, "delete its folder to run it again") from None
    provenance = read_record(run.folder / "provenance.json")
    free: tuple[str, ...] = ()
    if run.moved_to:  # `init` is compared below if it is the encoder of another run
        free = ("out_dir", "init.weights" if run.needs is None else "init")

    def changed(old: Any) -> list[Difference]:
        return other_fields(old, run.planned, provenance, free)

    # Filling in defaults takes longer than comparing, and most runs have all fields.
    others = changed(found) and changed(with_defaults(found, model_of(run.command), config_file, quiet=True))
    if run.moved_to is not None and run.needs is not None:
        # The encoder was moved too. Its path below out_dir must be the planned one: else it is another arm's.
        inside = run.needs.relative_to(run.moved_to).parts
        if Path(str(found.get("init"))).parts[-len(inside) :] != inside:
            others = [*others, Difference(("init",), found.get("init"), run.planned["init"])]
    if others and all(map(is_extension, others)):
        return True
    if others:
        remedy = "Delete the folder to run it again, or choose another out_dir"
        raise ConfigError(problem=f"holds another run: {listed(others, 5)}. {remedy}", place=run.folder)
    return False


def _measured_another(run: Run) -> bool:
    """Whether a measurement started from another encoder than the one that its pretraining has now."""
    now = None if run.needs is None else encoder_hash(run.needs)
    return now is not None and read_record(run.folder / INPUTS).get("encoder_sha256") != now


def is_extended(pretraining: Path) -> bool:
    """Whether a pretraining was continued with more steps than it had first."""
    return bool(read_record(pretraining / "provenance.json").get("extended"))


def finished(runs: Sequence[Run]) -> list[Run]:
    """The runs that are done, except measurements of a pretraining that is to be continued."""
    done = {run.folder: run for run in runs if is_done(run)}
    begun = begun_pretrainings([run for run in runs if run.folder not in done])
    return [run for run in done.values() if run.needs is None or run.needs.resolve() not in begun]


def begun_pretrainings(runs: Sequence[Run]) -> set[Path]:
    """The folders of pretrainings that have begun and are not done, or have fewer steps than planned.

    Resolved, as in `needs` of moved runs.
    """
    return {
        run.folder.resolve()
        for run in runs
        if not run.measures and (run.folder / "config.yaml").is_file() and not is_done(run)
    }


def set_aside(run: Run) -> None:
    """Rename the folder of a measurement that started from another encoder, as before an extension."""
    if run.needs is None or not (run.folder / INPUTS).is_file() or not _measured_another(run):
        return
    extended = read_record(run.needs / "provenance.json").get("extended")
    name = f"{run.folder.name}{FORMER}{f'{extended[-1][0]}_steps' if extended else 'another_encoder'}"
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    run.folder.rename(next(free for one in names if not (free := run.folder.with_name(one)).exists()))


def measured_before(run: Run) -> list[Path]:
    """The folders of results that were set aside before a measurement was repeated."""
    return sorted(file.parent for file in run.folder.parent.glob(f"{run.folder.name}{FORMER}*/results.json"))


def kept_and_waiting(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The runs that are done, and those to do.

    A deleted pretraining is not run again if all runs that start from it are done.
    """
    done = {run.folder for run in finished(runs)}
    still_needed = {run.needs for run in runs if run.folder not in done}
    spent = {run.needs for run in runs} - still_needed
    done |= {folder for folder in spent if folder is not None and not (folder / "config.yaml").exists()}
    return [run for run in runs if run.folder in done], [run for run in runs if run.folder not in done]

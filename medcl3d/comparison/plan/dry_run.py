"""Dry run of a comparison: assemble its runs before the first starts, so that errors appear immediately."""

from __future__ import annotations

import pkgutil
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from medcl3d.comparison.plan.runs import Run, model_of
from medcl3d.config.kinds import ASSEMBLE
from medcl3d.config.loading import load
from medcl3d.core.errors import ConfigError, UserError, Word
from medcl3d.downstream.run_weights import WEIGHTS
from medcl3d.evaluation.statistics.intervals import MIN_CASES_FOR_TEST
from medcl3d.objectives import objective_type

MOST_NAMED = 5
"""Failures that one message names."""
NEEDS_DECODER = {"transfer": "all", "voxel_features.maps": "decoded"}
MAPS_OF_SCRATCH = ("voxel_features.maps=encoder",)


def dry_run(runs: Sequence[Run], automatic: Container[str] = (), is_tested: bool = False) -> list[str]:
    """Assemble one run of each arm and cell, if its data is prepared: of the first replicate among `runs`.

    automatic: names of controls that the file does not list, and of their pretrainings. is_tested: warn if
    too few patients could be measured for a test.
    An encoder that does not exist yet is left out. Returns lines on data that is not prepared yet, and on
    automatic controls that would fail; ConfigError, with the first other runs that would fail and their
    errors.
    """
    found: list[str] = []
    controls: list[str] = []
    unknown: set[str] = set()
    tested: set[str] = set()
    pretrainings, num_assembled = {run.folder: run for run in runs if not run.measures}, 0
    first = {(run.command, run.name, run.cell): run for run in reversed(runs)}
    for run in reversed(first.values()):
        root = Path(str(run.planned.get("data", {}).get("root", "")))
        try:
            _check_decoder(run, pretrainings)
            if not (root / "prepared.json").is_file():
                unknown.add(str(root))
                continue
            assemble = pkgutil.resolve_name(ASSEMBLE[run.command])
            overrides = run.overrides
            if run.needs is not None and not (run.needs / WEIGHTS).is_file():
                # The encoder of scratch has no decoder, whose map a voxel probe may need.
                overrides = (*overrides, "init=scratch", *(MAPS_OF_SCRATCH if _maps(run) else ()))
            parts = assemble(load(run.config, overrides, model_of(run.command)))
            num_assembled += 1
            if run.command == "finetune":
                tested.update(parts.test.collection.table["patient"])
        except UserError as error:
            (controls if run.name in automatic else found).append(f"{run}: {error}")
    if found:
        more = f" (and {len(found) - MOST_NAMED} more)" if len(found) > MOST_NAMED else ""
        heading = f"{len(found)} of {len(first)} kinds of runs would fail{more}:"
        raise ConfigError("\n  ".join([heading, *found[:MOST_NAMED]]))
    left_out = "holds no prepared scans yet, so the dry run left out its runs"
    unprepared = [f"{root}: {left_out}" for root in sorted(unknown - {"."})]
    lines = [*unprepared, *(f"a control would fail and be left out: {text}" for text in controls)]
    if not first:
        return lines
    if is_tested and 0 < len(tested) < MIN_CASES_FOR_TEST:
        few = f"warning: {len(tested)} test patients can be measured; a test needs {MIN_CASES_FOR_TEST}"
        lines.append(f"{few}: prepare with a larger test_fraction or with folds, or add labels")
    kinds = f"{num_assembled} of {len(first)} kinds of runs (arm and cell)"
    return [
        *lines,
        f"dry run: {kinds} assembled with their data, labels, network and weights; none was trained",
    ]


def _check_decoder(run: Run, pretrainings: Mapping[Path, Run]) -> None:
    """ConfigError if a run needs the decoder of a pretraining that will not have one."""
    before = pretrainings.get(run.needs) if run.needs is not None else None
    fields = {
        "transfer": run.planned.get("transfer") == "all",
        "voxel_features.maps": _maps(run) == "decoded",
    }
    field = next((name for name, needs_decoder in fields.items() if needs_decoder), None)
    if before is None or field is None:
        return
    objective = next(iter(before.planned["objective"]))
    if not objective_type(objective).decodes:
        why = f"its pretraining {before.name!r} trains no decoder, since its objective is {objective}"
        remedy = f"set {field}: encoder, or pretrain with an objective of voxels, such as dense"
        raise ConfigError(field, Word(NEEDS_DECODER[field]), why, remedy)


def _maps(run: Run) -> str | None:
    """The feature maps of voxels that an evaluation with dense probes is configured to use."""
    maps: str | None = run.planned.get("voxel_features", {}).get("maps")
    return maps

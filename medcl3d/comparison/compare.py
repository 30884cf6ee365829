"""Comparisons of arms: plan runs, execute them, analyse the results, write a report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO, cast

from medcl3d.core.errors import DataError, UserError

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from medcl3d.comparison.plan.arm_types import ArmType
    from medcl3d.comparison.plan.config import CompareConfig, Prepare
    from medcl3d.comparison.plan.runs import Run
    from medcl3d.comparison.run.execute import Launcher, Outcome


def compare(
    config_path: Path,
    overrides: Sequence[str] = (),
    check: bool = False,
    from_runs: Sequence[Path] | None = None,
) -> Path:
    """Run a comparison, or its missing runs, and write the report. Returns the path of the report.

    check: print the plan and validate every configuration, but run nothing. from_runs: folders with
    finished runs of this comparison, for a report without starting any run.
    ConfigError, DataError; Stopped on Ctrl-C; UserError after the report if runs failed.
    """
    from rich.console import Console

    from medcl3d.comparison.analysis.results import moved
    from medcl3d.comparison.forecast import plan_summary
    from medcl3d.comparison.plan.arm_types import arm_types_of
    from medcl3d.comparison.plan.config import CompareConfig
    from medcl3d.comparison.plan.controls import with_controls
    from medcl3d.comparison.plan.dry_run import dry_run
    from medcl3d.comparison.plan.runs import plan
    from medcl3d.comparison.run.stages import check_confirmation
    from medcl3d.config.loading import load
    from medcl3d.io.disk_space import require_writable
    from medcl3d.io.output import LosableOutput

    # The results do not depend on the output, so a comparison whose output is no longer read continues.
    output = cast(TextIO, LosableOutput(sys.stdout))
    console = Console(file=output, highlight=False, markup=False, soft_wrap=True)
    config = with_controls(load(config_path, overrides, CompareConfig))
    runs = plan(config, str(config_path))
    check_confirmation(runs, config, str(config_path))
    context = _ReportContext(
        arm_types_of(runs, config),
        config_path,
        shlex.join(["python", "-m", "medcl3d", "compare", str(config_path), *overrides]),
        console,
    )
    if from_runs:
        require_writable(config.report_dir, "out_dir")
        return _report(moved(runs, config, from_runs), config, context)
    for line in plan_summary(runs, config):
        console.print(line)
    if check:
        require_writable(config.out_dir, "out_dir")
        for line in dry_run(runs):
            console.print(line)
        return config.report_dir / "report.html"
    failed = _execute(runs, config, console)
    return _report_without(failed, runs, config, context) if failed else _report(runs, config, context)


def _execute(runs: Sequence[Run], config: CompareConfig, console: Console) -> list[Outcome]:
    """Prepare the data, validate and execute the runs that are not done. Returns the failed ones."""
    from medcl3d.comparison.analysis.results import check_metrics, progress
    from medcl3d.comparison.plan.dry_run import dry_run
    from medcl3d.comparison.plan.preregistration import preregister
    from medcl3d.comparison.run.execute import execute, kept_and_waiting
    from medcl3d.comparison.run.lock import exclusive_start

    launcher = _launcher(config)
    with exclusive_start(config.out_dir):
        if config.prepare is not None:
            _prepare(config.prepare, console)
        for line in dry_run(kept_and_waiting(runs)[1]):
            console.print(line)
        preregister(config, *progress(runs, config))
        metrics = [config.metric, *(one.metric for one in config.later)]
        outcomes = execute(runs, launcher, console, partial(check_metrics, metrics=metrics))
    return [outcome for outcome in outcomes if outcome.state == "failed"]


def _report_without(
    failed: Sequence[Outcome], runs: Sequence[Run], config: CompareConfig, context: _ReportContext
) -> NoReturn:
    """Report on the complete replicates, then raise UserError with the number of failed runs."""
    for outcome in failed:
        context.console.print(f"failed: {outcome.run}: {outcome.reason} (in {outcome.run.folder})")
    try:
        where = f"{_report(runs, config, context)} has the complete replicates"
    except DataError as error:
        where = f"no report was written: {error}"
    raise UserError(
        f"{len(failed)} of {len(runs)} runs failed; {where}. "
        "Fix the cause and run the same command again: it runs only what is missing"
    )


def _launcher(config: CompareConfig) -> Launcher:
    from medcl3d.comparison.run.local import LocalLauncher
    from medcl3d.comparison.run.slurm import SlurmLauncher

    return (
        LocalLauncher(config.jobs)
        if config.executor == "local"
        else SlurmLauncher(config.out_dir, config.jobs, config.slurm)
    )


def _prepare(wanted: Prepare, console: Console) -> None:
    """Prepare the data; if it exists, check that it matches the comparison's fields."""
    from medcl3d.preprocessing.options import prepare_options
    from medcl3d.preprocessing.prepare import prepare

    given = prepare_options(wanted.source, wanted.options)
    prepare(
        wanted.source, wanted.root, wanted.out, fields=given.fields, options=given.options, say=console.print
    )


@dataclass(frozen=True)
class _ReportContext:
    """Inputs of a report besides runs and configuration.

    The arm types (by all planned runs), the configuration file, the command line, and the console.
    """

    arm_types: dict[str, ArmType]
    config_path: Path
    command: str
    console: Console


def _report(runs: Sequence[Run], config: CompareConfig, context: _ReportContext) -> Path:
    from medcl3d.comparison.analysis.analysis import analyse
    from medcl3d.comparison.analysis.conclusion_values import conclusion
    from medcl3d.comparison.analysis.results import (
        also_differing,
        check_provenance,
        complete_replicates,
        few_training_cases,
        gather,
        gather_cases,
        undefined,
    )
    from medcl3d.comparison.plan.preregistration import (
        CHANGED,
        MARGIN_CHANGED,
        check_preregistration,
        file_beside,
        preregistrations,
    )
    from medcl3d.comparison.report.markdown import markdown
    from medcl3d.comparison.report.report import write_report
    from medcl3d.comparison.run.stages import check_confirmation
    from medcl3d.io.atomic import write_json, write_text

    check_confirmation(runs, config, str(context.config_path))
    table = gather(runs, config)
    declared = check_preregistration(config, preregistrations(file_beside(runs, config)), list(table.columns))
    notes = [
        *filter(None, [declared.note]),
        *undefined(table, config),
        *also_differing(runs),
        *check_provenance(runs),
    ]
    notes += few_training_cases(runs)
    config.out_dir.mkdir(parents=True, exist_ok=True)
    write_text(config.report_dir / "results.csv", table.to_csv(index=False))
    cases = gather_cases(runs, config, complete_replicates(table, config))
    later = [gather_cases(runs, one, complete_replicates(table, one)) for one in config.later]
    margin_untested = "" if declared.margin_kept else MARGIN_CHANGED
    analysis = analyse(
        table, config, cases, context.arm_types, "" if declared.kept else CHANGED, later, margin_untested
    )
    if analysis is None:
        raise DataError(_incomplete(table, config, context.arm_types))
    path = config.report_dir / "report.html"
    write_report(
        path, analysis, runs, config, f"Comparison: {context.config_path.stem}", context.command, notes
    )
    table_of_means = markdown(analysis)
    write_text(config.report_dir / "results.md", table_of_means)
    write_json(config.report_dir / "conclusion.json", conclusion(analysis))
    context.console.print(table_of_means)
    context.console.print(str(path))
    return path


def _incomplete(table: pd.DataFrame, config: CompareConfig, arm_types: Mapping[str, ArmType]) -> str:
    """The reason for which no report is written, with a remedy if only controls were not run."""
    measured = set(table["arm"]) if len(table) else set()
    without = [name for name in config.arms if name not in measured]
    named = f" (no measurement of {', '.join(map(repr, without))})" if measured and without else ""
    only_controls = bool(named) and all(arm_types[name] != "pairs" for name in without)
    remedy = (
        "; run the comparison without --from to add them, or name the controls that were run: "
        "`controls: [scratch]`"
    )
    rows = f"{config.report_dir / 'results.csv'} has the {len(table)} measurements that exist"
    return f"no replicate is complete in all arms and cells{named}; {rows}{remedy if only_controls else ''}"

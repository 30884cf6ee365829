"""Comparisons of arms: plan runs, execute them, analyse the results, write a report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn, TextIO, cast

import pandas as pd
from rich.console import Console

from medcl3d.comparison.analysis.analyse import analyse
from medcl3d.comparison.analysis.conclusion_values import conclusion
from medcl3d.comparison.analysis.results import (
    also_differing,
    check_metrics,
    check_provenance,
    complete_replicates,
    few_training_cases,
    gather,
    gather_cases,
    moved,
    progress,
    undefined,
)
from medcl3d.comparison.plan.arm_types import ArmType, arm_types_of
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.controls import with_controls
from medcl3d.comparison.plan.dry_run import dry_run
from medcl3d.comparison.plan.preregistration import (
    CHANGED,
    MARGIN_CHANGED,
    check_preregistration,
    file_beside,
    preregister,
    preregistrations,
)
from medcl3d.comparison.plan.runs import Run, plan, refuse_fields_of_runs
from medcl3d.comparison.plan_summary import plan_summary
from medcl3d.comparison.report.markdown import markdown
from medcl3d.comparison.report.report import write_report
from medcl3d.comparison.run.archive import SUFFIX, is_archive, pack, unpack
from medcl3d.comparison.run.execute import Launcher, Outcome, execute, kept_and_waiting
from medcl3d.comparison.run.local import LocalLauncher
from medcl3d.comparison.run.lock import exclusive_start
from medcl3d.comparison.run.signals import stopped_by_signals
from medcl3d.comparison.run.slurm import SlurmLauncher
from medcl3d.comparison.run.stages import check_confirmation
from medcl3d.config.loading import load
from medcl3d.core.errors import ConfigError, DataError, UserError
from medcl3d.io.atomic import write_json, write_text
from medcl3d.io.disk_space import require_writable
from medcl3d.io.output import LosableOutput
from medcl3d.preprocessing.options import prepare_options
from medcl3d.preprocessing.prepare import prepare


def compare(
    config_path: Path,
    overrides: Sequence[str] = (),
    check: bool = False,
    from_runs: Sequence[Path] = (),
    pack_to: Path | None = None,
) -> Path:
    """Run a comparison, or its missing runs, and write the report. Returns the path of the report.

    check: print the plan and validate every configuration, but run nothing. from_runs: folders or archives
    with finished runs of this comparison, for a report without starting any run. pack_to: an archive of
    the finished runs, written after the report.
    ConfigError, DataError; Stopped on Ctrl-C or a signal; UserError after the report if runs failed.
    """
    # The results do not depend on the output, so a comparison whose output is no longer read continues.
    output = cast(TextIO, LosableOutput(sys.stdout))
    console = Console(file=output, highlight=False, markup=False, soft_wrap=True)
    refuse_fields_of_runs(overrides)
    config = with_controls(load(config_path, overrides, CompareConfig))
    runs = plan(config, str(config_path))
    check_confirmation(runs, config, str(config_path))
    if pack_to is not None and not is_archive(pack_to):
        problem, remedy = "not the name of an archive", f"use a name that ends in {SUFFIX}"
        raise ConfigError(problem=problem, remedy=remedy, place=f"--pack {pack_to}")
    report = partial(
        _report,
        config=config,
        pack_to=pack_to,
        arm_types=arm_types_of(runs, config),
        config_path=config_path,
        command=shlex.join(["python", "-m", "medcl3d", "compare", str(config_path), *overrides]),
        console=console,
    )
    if from_runs:
        require_writable(config.report_dir, "out_dir")
        unpacked = config.out_dir / "unpacked"
        roots = [unpack(root, unpacked / root.name) if is_archive(root) else root for root in from_runs]
        return report(moved(runs, config, roots))
    for line in plan_summary(runs, config):
        console.print(line)
    if check:
        require_writable(config.out_dir, "out_dir")
        for line in dry_run(runs):
            console.print(line)
        return config.report_dir / "report.html"
    failed = _execute(runs, config, console)
    return _report_without(failed, runs, report, console) if failed else report(runs)


def _execute(runs: Sequence[Run], config: CompareConfig, console: Console) -> list[Outcome]:
    """Prepare the data, validate and execute the runs that are not done. Returns the failed ones."""
    launcher: Launcher = (
        LocalLauncher(config.jobs)
        if config.executor == "local"
        else SlurmLauncher(config.out_dir, config.jobs, config.slurm)
    )
    with exclusive_start(config.out_dir):
        if (data := config.prepare) is not None:
            given = prepare_options(data.source, data.options)
            fields, options = given.fields, given.options
            prepare(data.source, data.root, data.out, fields=fields, options=options, say=console.print)
        for line in dry_run(kept_and_waiting(runs)[1]):
            console.print(line)
        preregister(config, *progress(runs, config))
        metrics = [config.metric, *(one.metric for one in config.later)]
        outcomes = execute(runs, launcher, console, partial(check_metrics, metrics=metrics))
    return [outcome for outcome in outcomes if outcome.state == "failed"]


def _report_without(
    failed: Sequence[Outcome],
    runs: Sequence[Run],
    report: Callable[[Sequence[Run]], Path],
    console: Console,
) -> NoReturn:
    """Report on the complete replicates, then raise UserError with the number of failed runs."""
    for outcome in failed:
        console.print(f"failed: {outcome.run}: {outcome.reason} (in {outcome.run.folder})")
    try:
        where = f"{report(runs)} has the complete replicates"
    except DataError as error:
        where = f"no report was written: {error}"
    raise UserError(
        f"{len(failed)} of {len(runs)} runs failed; {where}. "
        "Fix the cause and run the same command again: it runs only what is missing"
    )


@stopped_by_signals()
def _report(
    runs: Sequence[Run],
    config: CompareConfig,
    arm_types: dict[str, ArmType],
    config_path: Path,
    command: str,
    console: Console,
    pack_to: Path | None,
) -> Path:
    """Analyse the finished runs and write the report and the archive; arm_types: by all planned runs."""
    check_confirmation(runs, config, str(config_path))
    table = gather(runs, config)
    declared = check_preregistration(config, preregistrations(file_beside(runs, config)), list(table.columns))
    notes = [
        *filter(None, [declared.note]),
        *undefined(table, config),
        *also_differing(runs),
        *check_provenance(runs),
        *few_training_cases(runs),
    ]
    config.out_dir.mkdir(parents=True, exist_ok=True)
    write_text(config.report_dir / "results.csv", table.to_csv(index=False))
    cases, *later = (
        gather_cases(runs, one, complete_replicates(table, one)) for one in (config, *config.later)
    )
    untested = "" if declared.kept else CHANGED
    margin_untested = "" if declared.margin_kept else MARGIN_CHANGED
    analysis = analyse(table, config, cases, arm_types, untested, later, margin_untested)
    if analysis is None:
        raise DataError(_incomplete(table, config, arm_types))
    path = config.report_dir / "report.html"
    write_report(path, analysis, runs, config, f"Comparison: {config_path.stem}", command, notes)
    table_of_means = markdown(analysis)
    write_text(config.report_dir / "results.md", table_of_means)
    write_json(config.report_dir / "conclusion.json", conclusion(analysis))
    console.print(table_of_means)
    console.print(str(path))
    if pack_to is not None:
        console.print(f"{pack_to}: {pack(runs, config, pack_to)} runs")
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

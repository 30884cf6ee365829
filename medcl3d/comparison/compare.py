"""Comparisons of arms: plan runs, execute them, analyse the results, write a report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn, TextIO, cast

import pandas as pd
from rich.console import Console

from medcl3d.comparison.analysis.analyse import analyse
from medcl3d.comparison.analysis.analysis import Analysis
from medcl3d.comparison.analysis.compared_arms import (
    Gaps,
    compared_arms,
    failed_arms,
    incomplete_arms,
    runs_of,
)
from medcl3d.comparison.analysis.conclusion_values import SCHEMA, conclusion
from medcl3d.comparison.analysis.foreign_weights import foreign_weights
from medcl3d.comparison.analysis.incomplete_runs import incomplete_runs
from medcl3d.comparison.analysis.provenance import check_provenance
from medcl3d.comparison.analysis.results import (
    also_differing,
    check_metrics,
    complete_replicates,
    few_training_cases,
    gather,
    gather_cases,
    moved,
    progress,
    undefined,
)
from medcl3d.comparison.analysis.weak_placebos import weak_placebos
from medcl3d.comparison.plan.arm_types import ArmType, arm_types_of
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.controls import with_controls
from medcl3d.comparison.plan.dry_run import dry_run
from medcl3d.comparison.plan.preregistration import (
    CHANGED,
    MARGIN_CHANGED,
    PreregistrationCheck,
    check_preregistration,
    declarations_of,
    preregister,
)
from medcl3d.comparison.plan.runs import Run, plan, refuse_fields_of_runs
from medcl3d.comparison.plan_summary import plan_summary
from medcl3d.comparison.report.hparams import write_hparams
from medcl3d.comparison.report.markdown import markdown
from medcl3d.comparison.report.overview import write_overview
from medcl3d.comparison.report.report import write_report
from medcl3d.comparison.run.archive import SUFFIX, is_archive, pack, restore, unpack
from medcl3d.comparison.run.execute import Launcher, Outcome, execute
from medcl3d.comparison.run.finished_runs import UNPACKED, kept_and_waiting, measured_before
from medcl3d.comparison.run.local import LocalLauncher
from medcl3d.comparison.run.lock import exclusive_start
from medcl3d.comparison.run.signals import stopped_by_signals
from medcl3d.comparison.run.slurm import SlurmLauncher
from medcl3d.comparison.run.stages import check_confirmation
from medcl3d.config.loading import load
from medcl3d.core.errors import ConfigError, DataError, Stopped, UserError
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
    restore_from: Path | None = None,
) -> Path:
    """Run a comparison, or its missing runs, and write the report. Returns the path of the report.

    check: print the plan and validate every configuration, but run nothing. from_runs: folders or archives
    with finished runs of this comparison, for a report without starting any run. pack_to: an archive of
    the finished runs, written after the report. restore_from: an archive whose runs are not run again.
    ConfigError, DataError; after the report, Stopped on Ctrl-C or a signal, UserError if runs failed.
    """
    # The results do not depend on the output, so a comparison whose output is no longer read continues.
    output = cast(TextIO, LosableOutput(sys.stdout))
    console = Console(file=output, highlight=False, markup=False, soft_wrap=True)
    refuse_fields_of_runs(overrides)
    written = load(config_path, overrides, CompareConfig)
    config = with_controls(written)
    automatic = {*config.arms, *config.pretrainings} - {*written.arms, *written.pretrainings}
    runs = plan(config, str(config_path))
    check_confirmation(runs, config, str(config_path))
    for option, archive in (("--pack", pack_to), ("--restore", restore_from)):
        if archive is not None and not is_archive(archive):
            problem, remedy = "not the name of an archive", f"use a name that ends in {SUFFIX}"
            raise ConfigError(problem=problem, remedy=remedy, place=f"{option} {archive}")
    report = partial(
        _report,
        config=config,
        automatic=automatic,
        pack_to=pack_to,
        arm_types=arm_types_of(runs, config),
        config_path=config_path,
        command=shlex.join(["python", "-m", "medcl3d", "compare", str(config_path), *overrides]),
        console=console,
    )
    if from_runs:
        require_writable(config.report_dir, "out_dir")
        unpacked = config.out_dir / UNPACKED
        roots = [
            unpack(root, unpacked / f"{number}_{root.name}") if is_archive(root) else root
            for number, root in enumerate(from_runs)
        ]
        return report(moved(runs, config, roots))
    if restore_from is not None and not check:
        with exclusive_start(config.out_dir):
            console.print(f"{restore_from}: {restore(restore_from, runs, config)} runs restored")
    for line in plan_summary(runs, config):
        console.print(line)
    if check:
        require_writable(config.out_dir, "out_dir")
        _launcher(config)
        for line in dry_run(runs, automatic, is_tested=config.stage != "screen"):
            console.print(line)
        return config.report_dir / "report.html"
    try:
        failed = _execute(runs, config, automatic, console)
    except Stopped as stopped:
        raise Stopped(f"{stopped}; {_written(report, runs)}") from None
    return _failures(failed, runs, report, console) if failed else report(runs)


def _launcher(config: CompareConfig) -> Launcher:
    """MachineError, ConfigError if jobs of a cluster cannot be submitted here."""
    if config.executor == "local":
        return LocalLauncher(config.jobs)
    return SlurmLauncher(config.out_dir, config.jobs, config.slurm)


def _execute(
    runs: Sequence[Run], config: CompareConfig, automatic: Collection[str], console: Console
) -> list[Outcome]:
    """Prepare the data, validate and execute the runs that are not done. Returns the failed ones."""
    launcher = _launcher(config)
    with exclusive_start(config.out_dir):
        if (data := config.prepare) is not None:
            given = prepare_options(data.source, data.options)
            fields, options = given.fields, given.options
            prepare(data.source, data.root, data.out, fields=fields, options=options, say=console.print)
        kept, waiting = kept_and_waiting(runs)
        for line in dry_run(waiting, automatic, is_tested=config.stage != "screen" and not kept):
            console.print(line)
        preregister(config, *progress(runs, config))
        metrics = [config.metric, *(one.metric for one in config.later)]
        outcomes = execute(runs, launcher, console, partial(check_metrics, metrics=metrics))
    return [outcome for outcome in outcomes if outcome.state == "failed"]


def _written(report: Callable[[Sequence[Run]], Path], runs: Sequence[Run]) -> str:
    """Write the report of an incomplete comparison; a clause with its path, or the reason for which it has no
    comparison."""
    try:
        return f"{report(runs)} has what is complete"
    except DataError as error:
        return str(error)


def _failures(
    failed: Sequence[Outcome],
    runs: Sequence[Run],
    report: Callable[[Sequence[Run]], Path],
    console: Console,
) -> NoReturn:
    """Report on what is complete, then raise UserError with the number of failed runs."""
    for outcome in failed:
        console.print(f"failed: {outcome.run}: {outcome.reason} (in {outcome.run.folder})")
    raise UserError(
        f"{len(failed)} of {len(runs)} runs failed; {_written(report, runs)}. "
        "Fix the cause and run the same command again: it runs only what is missing"
    )


@stopped_by_signals()
def _report(
    runs: Sequence[Run],
    config: CompareConfig,
    automatic: Collection[str],
    arm_types: dict[str, ArmType],
    config_path: Path,
    command: str,
    console: Console,
    pack_to: Path | None,
) -> Path:
    """Analyse the finished runs and write the report and the archive; arm_types: by all planned runs.

    DataError after the report if nothing can be compared.
    """
    check_confirmation(runs, config, str(config_path))
    table, missing = gather(runs, config), incomplete_runs(runs, config)
    repeated = {run.seed for run in runs if run.measures and measured_before(run)}
    declarations = declarations_of(runs, config)
    declared = check_preregistration(config, declarations, list(table.columns), repeated)
    compared = compared_arms(table, config, {*automatic, *failed_arms(missing, config)})
    used = runs_of(runs, compared)
    notes = [
        *filter(None, [declared.note]),
        *undefined(table, config),
        *also_differing(used),
        *check_provenance(runs),
        *foreign_weights(used),
        *weak_placebos(runs, compared),
        *few_training_cases(used),
    ]
    config.report_dir.mkdir(parents=True, exist_ok=True)
    write_text(config.report_dir / "results.csv", table.to_csv(index=False))
    write_hparams(table, config, config.report_dir / "tensorboard")
    analysis = _analysis(table, used, compared, arm_types, declared)
    path = config.report_dir / "report.html"
    gaps = Gaps(tuple(incomplete_arms(table, config, compared, automatic, missing)), tuple(missing))
    title = f"Comparison: {config_path.stem}"
    if analysis is None:
        text = write_overview(path, gaps, config, title, command, notes)
        found = {"schema": SCHEMA, "conclusion": [text], "arms": []}
    else:
        write_report(path, analysis, used, compared, config, title, command, notes, gaps)
        text, found = markdown(analysis, gaps), conclusion(analysis)
    write_text(config.report_dir / "results.md", text)
    write_json(config.report_dir / "conclusion.json", {**found, "incomplete": gaps.as_rows()})
    console.print(text)
    console.print(str(path))
    if pack_to is not None:
        console.print(f"{pack_to}: {pack(runs, config, pack_to)} runs")
    if analysis is None:
        raise DataError(
            path, "nothing can be compared yet: no replicate is complete in two arms", "see there"
        )
    return path


def _analysis(
    table: pd.DataFrame,
    runs: Sequence[Run],
    config: CompareConfig,
    arm_types: Mapping[str, ArmType],
    declared: PreregistrationCheck,
) -> Analysis | None:
    """The analysis of the compared arms; None if no replicate is complete in all of them."""
    if not config.arms:
        return None
    cases, *later = (
        gather_cases(runs, one, complete_replicates(table, one)) for one in (config, *config.later)
    )
    untested = "" if declared.kept else CHANGED
    margin_untested = "" if declared.margin_kept else MARGIN_CHANGED
    types = {name: arm_types[name] for name in config.arms}
    return analyse(table, config, cases, types, untested, later, margin_untested)

"""The arms that are compared if some runs are incomplete, and what is known of the others."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace

import pandas as pd

from medcl3d.comparison.analysis.incomplete_runs import IncompleteRun
from medcl3d.comparison.analysis.results import complete_replicates
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.runs import Run


@dataclass(frozen=True)
class IncompleteArm:
    """An arm without all planned replicates.

    complete   number of its complete replicates
    compared   whether it is compared with the others, over the replicates that all of them have
    automatic  whether it is a control that the file does not list
    mean       its metric over all its finished measurements; None without any
    reasons    states and reasons of its runs, each with the replicates, as text
    """

    name: str
    complete: int
    compared: bool
    automatic: bool
    mean: float | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Gaps:
    """What a comparison lacks: incomplete arms, and all incomplete runs."""

    arms: tuple[IncompleteArm, ...] = ()
    runs: tuple[IncompleteRun, ...] = ()

    @property
    def left_out(self) -> tuple[IncompleteArm, ...]:
        """The arms that are not compared."""
        return tuple(one for one in self.arms if not one.compared)

    def as_rows(self) -> list[dict[str, object]]:
        """The incomplete arms as plain values, for `conclusion.json`."""
        return [{**asdict(one), "reasons": list(one.reasons)} for one in self.arms]


def compared_arms(table: pd.DataFrame, config: CompareConfig, doubtful: Collection[str]) -> CompareConfig:
    """The comparison with the arms that are compared only; its family stays the declared one.

    doubtful: arms with failed runs, and automatic controls: they are compared if they have every replicate of
    the others, which are those that all other arms with a complete replicate have. If nothing else could be
    compared with the reference, the doubtful arm with the most replicates decides. No arms if the reference
    has no complete replicate.
    """
    seeds = _complete(table, config)
    core, kept = seeds[config.reference], {config.reference}
    if not core:
        return replace(config, arms={}, family=config.tested_arms)
    for name in config.arms:
        if name not in doubtful and core & seeds[name]:
            core, kept = core & seeds[name], {*kept, name}
    others = [name for name in config.arms if name != config.reference]
    if len(kept) == 1 and others:
        most = max(others, key=lambda name: len(core & seeds[name]))
        core = core & seeds[most] or core
    arms = {name: arm for name, arm in config.arms.items() if core <= seeds[name]}
    return replace(config, arms=arms, family=config.tested_arms)


def failed_arms(missing: Sequence[IncompleteRun], config: CompareConfig) -> set[str]:
    """The arms with a failed run, or whose pretraining failed."""
    failed = {(one.run.measures, one.run.name) for one in missing if one.state == "failed"}
    arms = config.arms.items()
    return {name for name, arm in arms if (True, name) in failed or (False, arm.pretraining) in failed}


def runs_of(runs: Sequence[Run], config: CompareConfig) -> list[Run]:
    """The runs of the arms of a comparison, and of their pretrainings."""
    used = {arm.pretraining for arm in config.arms.values()}
    return [run for run in runs if run.name in (config.arms if run.measures else used)]


def incomplete_arms(
    table: pd.DataFrame,
    config: CompareConfig,
    compared: CompareConfig,
    automatic: Collection[str],
    missing: Sequence[IncompleteRun],
) -> list[IncompleteArm]:
    """The arms that lack a planned replicate, with their reasons; those that are not compared first."""
    seeds = _complete(table, config)
    found = []
    for name in config.arms:
        if len(seeds[name]) < config.replicates:
            values = _of_arm(table, name)[config.metric].mean() if len(_of_arm(table, name)) else None
            mean = None if values is None or pd.isna(values) else float(values)
            reasons = _reasons(name, config, missing) or (f"{config.metric} is not defined in its runs",)
            number, shown = len(seeds[name]), name in compared.arms
            found.append(IncompleteArm(name, number, shown, name in automatic, mean, reasons))
    return sorted(found, key=lambda one: one.compared)


def _complete(table: pd.DataFrame, config: CompareConfig) -> dict[str, set[int]]:
    """Arm -> its complete replicates."""
    alone = ((name, replace(config, arms={name: arm})) for name, arm in config.arms.items())
    return {name: set(complete_replicates(_of_arm(table, name), one)) for name, one in alone}


def _of_arm(table: pd.DataFrame, name: str) -> pd.DataFrame:
    return table if table.empty else table[table["arm"] == name]


def _reasons(name: str, config: CompareConfig, missing: Sequence[IncompleteRun]) -> tuple[str, ...]:
    """States and reasons of an arm's incomplete runs; of its pretrainings, if they are not done."""
    pretraining = config.arms[name].pretraining
    before = [one for one in missing if not one.run.measures and one.run.name == pretraining]
    waiting = {(one.run.seed, one.run.fold) for one in before}
    own = [one for one in missing if one.run.measures and one.run.name == name]
    replicates: dict[str, list[int]] = {}
    for one in [*before, *(one for one in own if (one.run.seed, one.run.fold) not in waiting)]:
        what = "" if one.run.measures else "pretraining "
        reason = re.sub(r"^(medcl3d|\w*Error): ", "", one.reason)
        replicates.setdefault(f"{what}{one.state}: {reason}", []).append(one.run.seed)
    return tuple(f"{text} ({_named(list(dict.fromkeys(of)))})" for text, of in replicates.items())


def _named(seeds: list[int]) -> str:
    several = len(seeds) > 1 and seeds == list(range(seeds[0], seeds[-1] + 1))
    shown = f"{seeds[0]} to {seeds[-1]}" if several else ", ".join(map(str, seeds))
    return f"replicate{'s' if len(seeds) > 1 else ''} {shown}"

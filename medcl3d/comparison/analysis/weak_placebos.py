"""Sentences on placebos that are weak controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.runs import Run, model_of
from medcl3d.config.loading import load
from medcl3d.pairs import PAIRS, PairStrategy, all_parts, traits_of


def weak_placebos(runs: Sequence[Run], config: CompareConfig) -> list[str]:
    """A sentence per arm whose pretraining is a placebo that changes little of what its strategy does."""
    first = {run.name: run for run in reversed(runs) if not run.measures and run.planned.get("placebo")}
    found = []
    for name, arm in config.arms.items():
        if arm.pretraining in first:
            run = first[arm.pretraining]
            fields: Any = load(run.config, run.overrides, model_of("pretrain"))
            strategy: PairStrategy = PAIRS.build(fields.pairs)
            reasons = {traits_of(part).weak_placebo for part in (strategy, *all_parts(strategy))} - {""}
            found += [f"“{name}” is a weak control: {reason}" for reason in sorted(reasons)]
    return found

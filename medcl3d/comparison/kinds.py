"""What an arm is in a comparison of pairs: a way to pair, or one of the controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from medcl3d.comparison.config import CompareConfig
from medcl3d.comparison.plan import Run

Kind = Literal["pairs", "scratch", "placebo", "mae"]
"""pairs: pretrained by a strategy; scratch: not pretrained; placebo: its strategy knows nothing true; mae: a task without pairs."""


def kinds_of(runs: Sequence[Run], config: CompareConfig) -> dict[str, Kind]:
    """Arm -> what it is, by the planned pretrainings that arms start from; an arm whose pretraining is not among `runs` pairs."""
    planned = {run.name: run.planned for run in runs if not run.measures}

    def kind(pretraining: str | None) -> Kind:
        if pretraining is None:
            return "scratch"
        fields = planned.get(pretraining, {})
        if "mae" in fields.get("objective", {}):
            return "mae"
        return "placebo" if fields.get("placebo", False) else "pairs"

    return {name: kind(arm.pretraining) for name, arm in config.arms.items()}

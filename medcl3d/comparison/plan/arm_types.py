"""Arm types: a pair strategy or one of the controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.runs import Run

ArmType = Literal["pairs", "scratch", "foreign", "augmented", "placebo", "mae"]
"""Type of an arm.

pairs      pretrained with a choice of pairs
scratch    not pretrained
foreign    starts from weights that another project has published
augmented  pretrained with two augmentations of one crop: no choice of pairs
placebo    pretrained with the signal columns of its strategy permuted
mae        pretrained to reconstruct masked blocks: no pairs
"""


def arm_types_of(runs: Sequence[Run], config: CompareConfig) -> dict[str, ArmType]:
    """Arm -> its type, from the planned pretrainings; `pairs` if its pretraining is not among `runs`."""
    planned = {run.name: run.planned for run in runs if not run.measures}

    def kind(pretraining: str | None) -> ArmType:
        if pretraining is None:
            return "scratch"
        fields = planned.get(pretraining, {})
        if "mae" in fields.get("objective", {}):
            return "mae"
        if fields.get("placebo", False):
            return "placebo"
        return "augmented" if "augmented_views" in fields.get("pairs", {}) else "pairs"

    return {name: "foreign" if arm.init else kind(arm.pretraining) for name, arm in config.arms.items()}

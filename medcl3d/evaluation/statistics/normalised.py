"""Scores on a common scale of tasks: 0 without pretraining, 1 for training with all labels."""

from __future__ import annotations

from collections.abc import Mapping


def normalised(
    values: Mapping[str, float], low: float, high: float, higher: bool = True
) -> dict[str, float] | None:
    """Arm -> (value - low) / (high - low); None unless `high` is better than `low`.

    Below 0: worse than `low`; above 1: better than `high`. higher: larger values of the metric are better.
    """
    span = high - low
    if not (span > 0 if higher else span < 0):
        return None
    return {arm: (value - low) / span for arm, value in values.items()}

"""Directions of metrics: whether higher or lower values are better."""

from __future__ import annotations

from typing import Literal

Direction = Literal["higher", "lower"]

LOWER = {"hd95_mm", "volume_error_ml", "mae", "brier", "calibration_error", "error_mm", "same_place_error_mm"}
HIGHER = {
    *("dice", "nsd_2mm", "accuracy", "balanced_accuracy", "auroc", "average_precision", "r2"),
    *("recall@1", "recall@5", "reciprocal_rank"),
    *("within_5mm", "within_10mm", "within_20mm"),
}


LARGEST = {
    **dict.fromkeys({"calibration_error", *HIGHER} - {"r2"}, 1.0),
    "brier": 2.0,  # of classes; that of a finding ends at 1
}
"""The largest value of metrics that begin at 0."""


def largest_of(metric: str) -> float:
    """The largest value of a measure, as of `direction_of`; infinity if it has none or is unknown."""
    return max((LARGEST[part] for part in metric.split("/") if part in LARGEST), default=float("inf"))


def direction_of(metric: str) -> Direction | None:
    """Direction of a measure, also for one class (``hd95_mm/liver``) or a probe (``linear/brier``).

    None if unknown.
    """
    parts = set(metric.split("/"))
    return "lower" if parts & LOWER else "higher" if parts & HIGHER else None

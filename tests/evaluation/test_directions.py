"""Limits and directions of metrics."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medcl3d.evaluation.metrics.classification import brier
from medcl3d.evaluation.metrics.directions import direction_of, largest_of


@pytest.mark.parametrize(
    ("metric", "largest"),
    [
        ("dice", 1),
        ("linear/auroc", 1),
        ("voxel_matching/frame/within_5mm", 1),
        ("linear/brier", 2),
        ("hd95_mm", math.inf),
        ("r2", math.inf),
        ("unknown", math.inf),
    ],
)
def test_the_largest_value(metric: str, largest: float) -> None:
    assert largest_of(metric) == largest


def test_the_brier_score_of_classes_exceeds_one() -> None:
    worst = brier(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([0, 1]))
    assert worst == largest_of("brier") and direction_of("brier") == "lower"

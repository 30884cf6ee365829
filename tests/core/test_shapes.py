"""Tests check the shapes of annotated arguments: a wrong one raises."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from medcl3d.losses.clusters import sinkhorn
from tests.shapes import CHECKED

pytestmark = pytest.mark.skipif(
    os.environ.get("CHECK_SHAPES") != "1", reason="shapes are checked by `make test-shapes`"
)


def test_a_wrong_shape_raises_before_the_function_runs() -> None:
    with pytest.raises(TypeCheckError, match="sinkhorn"):
        sinkhorn(torch.zeros(2, 3, 4), 0.05, 3)
    with pytest.raises(TypeCheckError, match="sinkhorn"):
        sinkhorn(torch.zeros(2, 3, dtype=torch.int64), 0.05, 3)
    assert sinkhorn(torch.zeros(2, 3), 0.05, 3).shape == (2, 3)


def test_every_package_with_shapes_is_checked() -> None:
    from medcl3d.core.body_coordinates import middle_of_body

    with pytest.raises(TypeCheckError):
        middle_of_body(np.eye(3), np.zeros((2, 3), dtype=np.int64))
    assert {name.removeprefix("medcl3d.") for name in CHECKED} >= {"core", "pairs", "losses", "objectives"}

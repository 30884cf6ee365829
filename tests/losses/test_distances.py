"""Regression of distances: value and gradient of a slow loop, and pairs without a distance."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medcl3d.losses.distances import distance_errors


@given(seed=st.integers(0, 1000))
def test_value_and_gradient_are_those_of_a_slow_loop(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    rows, cols, target = (
        torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((5, 3), (7, 3), (5, 7))
    )
    compared = torch.rand(5, 7, generator=rng) < 0.6
    target = torch.where(compared, target.abs(), torch.inf)
    weight = torch.rand(5, 7, generator=rng, dtype=torch.float64)
    found, expected = [], []
    for into, fast in ((found, True), (expected, False)):
        a, b = rows.clone().requires_grad_(), cols.clone().requires_grad_()
        if fast:
            errors = distance_errors(a, b, target, compared)
            into.append(errors.detach())
            total = (errors * weight).sum()
        else:
            total = torch.zeros((), dtype=torch.float64)
            values = torch.zeros(5, 7, dtype=torch.float64)
            for i in range(5):
                for j in range(7):
                    if compared[i, j]:
                        error = (((a[i] - b[j]) ** 2).sum() ** 0.5 - target[i, j]) ** 2
                        values[i, j] = error.detach()
                        total = total + weight[i, j] * error
            into.append(values)
        into += torch.autograd.grad(total, (a, b), allow_unused=True)
    torch.testing.assert_close(found, expected)


def test_equal_vectors_have_a_finite_gradient() -> None:
    z = torch.ones(3, 4, requires_grad=True)
    distance_errors(z, z, torch.full((3, 3), 2.0), ~torch.eye(3, dtype=torch.bool)).sum().backward()
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_is_computed_in_float32_or_better(dtype: torch.dtype) -> None:
    z = torch.randn(4, 8).to(dtype)
    everything = torch.ones(4, 4, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = distance_errors(z, z, torch.zeros(4, 4, dtype=torch.float64), everything)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.cdist(z.float(), z.float()).square(), atol=1e-4, rtol=1e-4)

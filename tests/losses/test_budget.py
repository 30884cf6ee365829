"""Pairs with a budget: value and gradient, blocks, tiles with some columns, and no loss within the budget."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from medcl3d.core.relation import Relation
from medcl3d.losses.budget import BudgetedPairs
from medcl3d.losses.contrastive import Tile
from medcl3d.losses.contrastive_loss import ContrastiveLoss
from tests.reference.contrastive import budget_loss_loops

N = 8


def some(seed: int) -> tuple[Tensor, Tensor]:
    """Unit vectors, and budgets of a third of the pairs."""
    draw = torch.Generator().manual_seed(seed)
    z = torch.randn(N, 4, dtype=torch.float64, generator=draw)
    budget = 1.5 * torch.rand(N, N, dtype=torch.float64, generator=draw)
    return z, budget.masked_fill(torch.rand(N, N, generator=draw) < 0.7, torch.nan).fill_diagonal_(torch.nan)


def tile_of(budget: Tensor, columns: Tensor | slice | None = None) -> Tile:
    return Tile(Relation(torch.zeros_like(budget), torch.ones_like(budget), budget), columns)


@given(seed=st.integers(0, 1000), rows=st.integers(1, N))
def test_the_sum_equals_loops_for_any_block(seed: int, rows: int) -> None:
    z, budget = some(seed)
    unit = F.normalize(z, dim=1)
    blocks = (slice(start, start + rows) for start in range(0, N, rows))
    found = BudgetedPairs((block, tile_of(budget[block])) for block in blocks).sum(unit, unit)
    assert float(found.weight) == float((~budget.isnan()).sum())
    expected = budget_loss_loops(z.tolist(), budget.tolist())
    assert float(found.loss) == pytest.approx(expected * float(found.weight), abs=1e-12)


@given(seed=st.integers(0, 1000), columns=st.sampled_from([torch.tensor([6, 1, 3]), slice(2, 5)]))
def test_a_tile_of_some_columns_has_the_pairs_of_these_columns(seed: int, columns: Tensor | slice) -> None:
    z, budget = some(seed)
    unit = F.normalize(z, dim=1)
    some_only = torch.full_like(budget, torch.nan)
    some_only[:, columns] = budget[:, columns]
    found = BudgetedPairs([(slice(0, N), tile_of(budget[:, columns], columns))]).sum(unit, unit)
    whole = BudgetedPairs([(slice(0, N), tile_of(some_only))]).sum(unit, unit)
    torch.testing.assert_close(found.loss, whole.loss)
    assert found.weight == whole.weight


@given(seed=st.integers(0, 1000))
def test_the_gradient_is_that_of_finite_differences(seed: int) -> None:
    z, budget = some(seed)
    leaf = z.clone().requires_grad_()

    def value(vectors: Tensor) -> Tensor:
        unit = F.normalize(vectors, dim=1)
        return BudgetedPairs([(slice(0, N), tile_of(budget))]).sum(unit, unit).loss

    assert torch.autograd.gradcheck(value, (leaf,), atol=1e-5)


def test_pairs_within_their_budget_have_no_loss_and_no_gradient() -> None:
    z = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.5], [0.0, 1.0]], dtype=torch.float64), dim=1)
    z.requires_grad_()
    budget = torch.full((3, 3), torch.nan, dtype=torch.float64)
    budget[0, 1] = budget[0, 2] = 0.5
    found = BudgetedPairs([(slice(0, 3), tile_of(budget))]).sum(z, z)
    found.loss.backward()
    assert float(found.loss.detach()) == pytest.approx(0.25), "of the pair at distance 1 alone"
    assert z.grad is not None and (z.grad[1] == 0).all() and (z.grad[2] != 0).any()


def test_without_pairs_the_sum_is_zero_and_differentiable() -> None:
    z = torch.eye(3, requires_grad=True)
    found = BudgetedPairs([(slice(0, 3), tile_of(torch.full((3, 3), torch.nan)))]).sum(z, z)
    found.loss.backward()
    assert float(found.loss.detach()) == float(found.weight) == 0


@given(seed=st.integers(0, 1000))
def test_the_module_adds_the_weighted_mean(seed: int) -> None:
    z, budget = some(seed)
    positive = torch.eye(N).roll(1, 0)
    budget[0, 0] = 0.0  # the diagonal is ignored
    plain, module = ContrastiveLoss(), ContrastiveLoss(budget_weight=2.5)
    budget_alone = float(module(z, positive, None, budget) - plain(z, positive))
    assert budget_alone == pytest.approx(2.5 * budget_loss_loops(z.tolist(), budget.tolist()), abs=1e-9)

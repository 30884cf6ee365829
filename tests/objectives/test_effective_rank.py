"""The effective rank logged in training and RankMe of an evaluation are one measure."""

from __future__ import annotations

import pytest
import torch

from medcl3d.evaluation.metrics.label_free import rankme
from medcl3d.objectives.diagnostics import RANK_ROWS, effective_rank


@pytest.mark.parametrize("shape", [(40, 6), (5, 12), (RANK_ROWS, 3)])
def test_both_give_the_same_number(shape: tuple[int, int]) -> None:
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.arange(1, shape[1] + 1)
    assert float(effective_rank(z)) == pytest.approx(rankme(z.numpy()), rel=1e-4)


def test_both_give_one_for_collapsed_features() -> None:
    z = torch.ones(40, 6)
    assert float(effective_rank(z)) == pytest.approx(rankme(z.numpy()), rel=1e-4)

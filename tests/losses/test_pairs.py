"""Losses without negatives: compared with slow loops and lightly, value and gradient in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medcl3d.losses.clusters import cross_entropy_sum, scores_of, sinkhorn
from medcl3d.losses.pairs import barlow_twins, cosine_distance, koleo, vicreg
from tests.reference import pairs as loops
from tests.reference.lightly_losses import lightly_loss

N, D = 9, 5


def vectors(seed: int, n: int = N) -> Tensor:
    return torch.randn(
        n, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    ).requires_grad_()


def weights(seed: int) -> Tensor:
    return torch.rand(N, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def equal(ours: Callable[[], Tensor], theirs: Callable[[], Tensor], *inputs: Tensor) -> None:
    """Value and gradient with respect to every input."""
    first, second = ours(), theirs()
    torch.testing.assert_close(first, second, atol=1e-9, rtol=1e-9)
    for a, b in zip(torch.autograd.grad(first, inputs), torch.autograd.grad(second, inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
        assert a.abs().max() > 0


def test_losses_equal_slow_loops() -> None:
    a, b, w = vectors(0), vectors(1), weights(2)
    first, second = a.tolist(), b.tolist()
    assert cosine_distance(a, b).tolist() == pytest.approx(loops.byol_loops(first, second), abs=1e-9)
    expected = loops.barlow_twins_loops(first, second, w.tolist(), 0.1, 1e-5)
    assert barlow_twins(a, b, w, 0.1).item() == pytest.approx(expected, abs=1e-9)
    expected = loops.vicreg_loops(first, second, w.tolist(), (25, 20, 3), 1e-4)
    assert vicreg(a, b, w, 25, 20, 3).item() == pytest.approx(expected, abs=1e-9)
    unit, groups = F.normalize(a, dim=1), torch.arange(N) // 2
    assert koleo(unit, groups).item() == pytest.approx(
        loops.koleo_loops(unit.tolist(), groups.tolist(), 1e-8), abs=1e-9
    )


def test_codes_equal_slow_loops() -> None:
    scores = scores_of(F.normalize(vectors(0), dim=1), vectors(1, 4)).detach()
    codes = sinkhorn(scores, 0.05, 3)
    assert torch.allclose(
        codes, torch.tensor(loops.sinkhorn_loops(scores.tolist(), 0.05, 3), dtype=torch.float64), atol=1e-9
    )
    assert torch.allclose(codes.sum(1), torch.ones(N, dtype=torch.float64))
    many = sinkhorn(scores, 0.5, 200)
    assert torch.allclose(many.sum(0), torch.full((4,), N / 4, dtype=torch.float64), atol=1e-6), (
        "prototypes are used equally"
    )
    log_p, positive = F.log_softmax(scores / 0.1, 1), torch.rand(N, N, dtype=torch.float64)
    expected = loops.cross_entropy_loops(log_p.tolist(), codes.tolist(), positive.tolist())
    assert cross_entropy_sum(log_p, codes, positive).item() == pytest.approx(expected, abs=1e-9)


def test_codes_are_finite_when_the_exponential_overflows() -> None:
    codes = sinkhorn(torch.tensor([[1.0, -1.0], [0.9, -0.8], [-1.0, 1.0]]), 1e-3, 3)
    assert torch.isfinite(codes).all() and torch.allclose(codes.sum(1), torch.ones(3))


def test_all_weights_one_is_barlow_twins_as_published() -> None:
    a, b = vectors(3), vectors(4)
    theirs = lightly_loss("barlow_twins_loss", "BarlowTwinsLoss")(lambda_param=0.0051)
    equal(lambda: barlow_twins(a, b, torch.ones(N, dtype=torch.float64), 0.0051), lambda: theirs(a, b), a, b)


def test_all_weights_one_is_vicreg_as_published() -> None:
    a, b = vectors(3), vectors(4)
    theirs = lightly_loss("vicreg_loss", "VICRegLoss")()
    equal(lambda: vicreg(a, b, torch.ones(N, dtype=torch.float64), 25, 25, 1), lambda: theirs(a, b), a, b)


def test_vectors_of_groups_of_one_are_koleo_as_published() -> None:
    z = vectors(5)
    theirs = lightly_loss("koleo_loss", "KoLeoLoss")()
    equal(lambda: koleo(F.normalize(z, dim=1, eps=1e-8), torch.arange(N)), lambda: theirs(z), z)


def test_a_pair_of_weight_zero_does_not_pull() -> None:
    a, b, w = vectors(0), vectors(1), torch.ones(N, dtype=torch.float64)
    w[3] = 0
    for loss in (lambda: vicreg(a, b, w, 1, 0, 0), lambda: (w * cosine_distance(a, b)).sum()):
        (gradient,) = torch.autograd.grad(loss(), b)
        assert (gradient[3] == 0).all() and (gradient[4] != 0).any()

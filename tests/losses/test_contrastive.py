"""The contrastive loss: against slow loops, published implementations, and what it promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss
from torch import Tensor
from torch.nn import functional as F

from medcl3d.losses.contrastive import contrastive_sum
from medcl3d.types import Relation
from tests.reference.contrastive import contrastive_loss_loops, dcl_loops

VECTORS = Path(__file__).parents[3] / "shared" / "vectors" / "contrastive_loss.json"
DENOMINATORS = ["all", "own"]


def loss_of(z: Tensor, positive: Tensor, negative: Tensor, temperature: float = 0.2, **kind: object) -> Tensor:
    z = F.normalize(z, dim=1)
    total = contrastive_sum(z @ z.T, Relation(positive, negative), temperature, **kind)  # type: ignore[arg-type]
    return total.loss / total.weight


def random_relation(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings and a relation with weak, strong, absent, left-alone and orphan rows."""
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 5, generator=rng, dtype=torch.float64)
    positive = torch.rand(n, n, generator=rng, dtype=torch.float64) * (torch.rand(n, n, generator=rng) < 0.3)
    negative = torch.where(torch.rand(n, n, generator=rng) < 0.2, 0.0, 1 - positive)
    positive[0] = 0
    off_diagonal = 1 - torch.eye(n, dtype=torch.float64)
    return z, positive * off_diagonal, negative * off_diagonal


def pairs(n: int) -> tuple[Tensor, Tensor]:
    """One positive of weight 1 an anchor: rows i and i + n/2."""
    partner = (torch.arange(n) + n // 2) % n
    positive = torch.zeros(n, n, dtype=torch.float64)
    positive[torch.arange(n), partner] = 1
    return positive, (1 - positive) * (1 - torch.eye(n, dtype=torch.float64))


@pytest.mark.skipif(not VECTORS.is_file(), reason="the worked cases lie beside the project, in shared/vectors")
def test_agrees_with_the_worked_cases() -> None:
    for case in json.loads(VECTORS.read_text()):
        z = torch.tensor(case["z"], dtype=torch.float64, requires_grad=True)
        value = loss_of(
            z,
            torch.tensor(case["positive"], dtype=torch.float64),
            torch.tensor(case["negative"], dtype=torch.float64),
            case["temperature"],
            denominator=case["denominator"],
        )
        value.backward()
        assert value.item() == pytest.approx(case["loss"], abs=1e-9), case["name"]
        torch.testing.assert_close(z.grad, torch.tensor(case["gradient"], dtype=torch.float64), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_slow_loops(denominator: str, seed: int) -> None:
    z, positive, negative = random_relation(9, seed)
    expected = contrastive_loss_loops(z.tolist(), positive.tolist(), negative.tolist(), 0.2, denominator)
    assert loss_of(z, positive, negative, denominator=denominator).item() == pytest.approx(expected, abs=1e-10)


def test_gradient_is_that_of_finite_differences() -> None:
    z, positive, negative = random_relation(6, 3)
    for denominator in DENOMINATORS:
        assert torch.autograd.gradcheck(lambda x, d=denominator: loss_of(x, positive, negative, denominator=d), z.requires_grad_())


def test_one_positive_of_weight_one_is_nt_xent() -> None:
    z = torch.randn(12, 6, dtype=torch.float64, requires_grad=True)
    positive, negative = pairs(12)
    labels = torch.arange(12) % 6
    expected = NTXentLoss(temperature=0.2)(z, labels)
    value = loss_of(z, positive, negative)
    torch.testing.assert_close(value, expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(*torch.autograd.grad(value, z), *torch.autograd.grad(expected, z), atol=1e-9, rtol=0)


def test_binary_positives_are_supcon() -> None:
    z = torch.randn(10, 6, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2, 0, 1, 2])
    same = (labels[:, None] == labels).double() * (1 - torch.eye(10))
    value = loss_of(z, same, (1 - same) * (1 - torch.eye(10)))
    expected = SupConLoss(temperature=0.2)(z, labels)
    torch.testing.assert_close(value, expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(*torch.autograd.grad(value, z), *torch.autograd.grad(expected, z), atol=1e-9, rtol=0)


def test_decoupled_is_dcl() -> None:
    z = torch.randn(8, 4, dtype=torch.float64)
    positive, negative = pairs(8)
    assert loss_of(z, positive, negative, decoupled=True).item() == pytest.approx(dcl_loops(z.tolist(), 0.2), abs=1e-10)


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_permuting_the_batch_changes_nothing(denominator: str) -> None:
    z, positive, negative = random_relation(9, 1)
    order = torch.randperm(9)
    mixed = loss_of(z[order], positive[order][:, order], negative[order][:, order], denominator=denominator)
    torch.testing.assert_close(mixed, loss_of(z, positive, negative, denominator=denominator))


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_a_weak_pair_pulls_less_than_a_strong_one(denominator: str) -> None:
    """Both kinds in one batch, so that normalising by rows alone would be caught."""
    z = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z[4:] = -z[:4] + 0.1 * z[4:]  # all pairs equally far apart, so weights alone make the difference
    z.requires_grad_()
    pulls = []
    for weight in (0.1, 1.0):
        positive, _ = pairs(8)
        positive[0, 4] = positive[4, 0] = weight
        negative = (1 - positive) * (1 - torch.eye(8))
        (gradient,) = torch.autograd.grad(loss_of(z, positive, negative, denominator=denominator), z)
        pulls.append(-(gradient[0] * (z[4] - z[0])).sum().item())
    assert 0 < pulls[0] < 0.5 * pulls[1]


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_nothing_jumps_as_a_weight_goes_to_zero(denominator: str) -> None:
    z = torch.randn(8, 4, dtype=torch.float64)
    values = []
    for weight in (1e-3, 1e-6, 1e-9, 0.0):
        positive, _ = pairs(8)
        positive[0, 4] = positive[4, 0] = weight
        values.append(loss_of(z, positive, (1 - positive) * (1 - torch.eye(8)), denominator=denominator).item())
    assert values[0] != pytest.approx(values[3], abs=1e-7)
    assert values[1] == pytest.approx(values[3], abs=1e-4)
    assert values[2] == pytest.approx(values[3], abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_at_a_temperature_of_a_hundredth(dtype: torch.dtype) -> None:
    z = F.normalize(torch.randn(16, 8), dim=1).requires_grad_()
    positive, negative = pairs(16)
    total = contrastive_sum((z @ z.T).to(dtype), Relation(positive, negative), 0.01)
    total.loss.backward()
    assert total.loss.dtype == torch.float32
    assert torch.isfinite(total.loss) and torch.isfinite(z.grad).all()


def test_anchors_without_a_positive_do_not_enter() -> None:
    z, positive, negative = random_relation(7, 2)
    total = contrastive_sum(F.normalize(z) @ F.normalize(z).T, Relation(positive, negative), 0.2)
    assert total.weight.item() == pytest.approx(positive.sum(1).clamp(max=1).sum().item())

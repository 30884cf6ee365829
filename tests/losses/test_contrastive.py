"""The contrastive loss: compared with slow loops and published implementations, and its properties."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss
from torch import Tensor
from torch.nn import functional as F

from medcl3d.core.relation import ListedPairs, Relation
from medcl3d.losses.contrastive import RelateBlock, Tile, WeightedSum, contrastive_sum
from tests.reference.contrastive import contrastive_loss_loops, dcl_loops, whole_matrix_sum

VECTORS = Path(__file__).parents[3] / "shared" / "vectors" / "contrastive_loss.json"
DENOMINATORS = ["all", "own"]


KINDS: list[dict[str, object]] = [{"denominator": "all"}, {"denominator": "own"}, {"decoupled": True}]


def known(positive: Tensor, negative: Tensor) -> RelateBlock:
    """Return rows of a given relation."""
    return lambda block, similarity: Tile(Relation(positive[block], negative[block]))


def sum_of(
    z: Tensor, positive: Tensor, negative: Tensor, temperature: float = 0.2, **kind: object
) -> WeightedSum:
    z = F.normalize(z, dim=1)
    return contrastive_sum(z, z, known(positive, negative), temperature, **kind)  # type: ignore[arg-type]


def loss_of(
    z: Tensor, positive: Tensor, negative: Tensor, temperature: float = 0.2, **kind: object
) -> Tensor:
    total = sum_of(z, positive, negative, temperature, **kind)
    return total.loss / total.weight


def random_relation(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings and a relation with weak, strong, absent and ignored pairs, and anchors without a
    positive.
    """
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 5, generator=rng, dtype=torch.float64)
    positive = torch.rand(n, n, generator=rng, dtype=torch.float64) * (torch.rand(n, n, generator=rng) < 0.3)
    negative = torch.where(torch.rand(n, n, generator=rng) < 0.2, 0.0, 1 - positive)
    positive[0] = 0
    off_diagonal = 1 - torch.eye(n, dtype=torch.float64)
    return z, positive * off_diagonal, negative * off_diagonal


def pairs(n: int) -> tuple[Tensor, Tensor]:
    """One positive of weight 1 per anchor: rows i and i + n/2."""
    partner = (torch.arange(n) + n // 2) % n
    positive = torch.zeros(n, n, dtype=torch.float64)
    positive[torch.arange(n), partner] = 1
    return positive, (1 - positive) * (1 - torch.eye(n, dtype=torch.float64))


@pytest.mark.skipif(
    not VECTORS.is_file(), reason="the worked cases are outside the project, in shared/vectors"
)
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
        torch.testing.assert_close(
            z.grad, torch.tensor(case["gradient"], dtype=torch.float64), atol=1e-6, rtol=1e-6
        )


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_slow_loops(denominator: str, seed: int) -> None:
    z, positive, negative = random_relation(9, seed)
    expected = contrastive_loss_loops(z.tolist(), positive.tolist(), negative.tolist(), 0.2, denominator)
    assert loss_of(z, positive, negative, denominator=denominator).item() == pytest.approx(
        expected, abs=1e-10
    )


def test_gradient_is_that_of_finite_differences() -> None:
    z, positive, negative = random_relation(6, 3)
    for denominator in DENOMINATORS:
        assert torch.autograd.gradcheck(
            lambda x, d=denominator: loss_of(x, positive, negative, denominator=d), z.requires_grad_()
        )


def test_one_positive_of_weight_one_is_nt_xent() -> None:
    z = torch.randn(12, 6, dtype=torch.float64, requires_grad=True)
    positive, negative = pairs(12)
    labels = torch.arange(12) % 6
    expected = NTXentLoss(temperature=0.2)(z, labels)
    value = loss_of(z, positive, negative)
    torch.testing.assert_close(value, expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(
        *torch.autograd.grad(value, z), *torch.autograd.grad(expected, z), atol=1e-9, rtol=0
    )


def test_binary_positives_are_supcon() -> None:
    z = torch.randn(10, 6, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2, 0, 1, 2])
    same = (labels[:, None] == labels).double() * (1 - torch.eye(10))
    value = loss_of(z, same, (1 - same) * (1 - torch.eye(10)))
    expected = SupConLoss(temperature=0.2)(z, labels)
    torch.testing.assert_close(value, expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(
        *torch.autograd.grad(value, z), *torch.autograd.grad(expected, z), atol=1e-9, rtol=0
    )


def test_decoupled_is_dcl() -> None:
    z = torch.randn(8, 4, dtype=torch.float64)
    positive, negative = pairs(8)
    assert loss_of(z, positive, negative, decoupled=True).item() == pytest.approx(
        dcl_loops(z.tolist(), 0.2), abs=1e-10
    )


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_permuting_the_batch_changes_nothing(denominator: str) -> None:
    z, positive, negative = random_relation(9, 1)
    order = torch.randperm(9)
    mixed = loss_of(z[order], positive[order][:, order], negative[order][:, order], denominator=denominator)
    torch.testing.assert_close(mixed, loss_of(z, positive, negative, denominator=denominator))


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_a_weak_pair_pulls_less_than_a_strong_one(denominator: str) -> None:
    """Both pairs in one batch, so that normalisation by rows alone fails."""
    z = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z[4:] = -z[:4] + 0.1 * z[4:]  # all pairs equally distant, so only weights differ
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
def test_the_loss_is_continuous_as_a_weight_goes_to_zero(denominator: str) -> None:
    z = torch.randn(8, 4, dtype=torch.float64)
    values = []
    for weight in (1e-3, 1e-6, 1e-9, 0.0):
        positive, _ = pairs(8)
        positive[0, 4] = positive[4, 0] = weight
        values.append(
            loss_of(z, positive, (1 - positive) * (1 - torch.eye(8)), denominator=denominator).item()
        )
    assert values[0] != pytest.approx(values[3], abs=1e-7)
    assert values[1] == pytest.approx(values[3], abs=1e-4)
    assert values[2] == pytest.approx(values[3], abs=1e-7)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_exact_at_a_temperature_of_a_hundredth_under_bfloat16(kind: dict[str, object]) -> None:
    z = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    exact = z.detach().double().requires_grad_()
    positive, negative = pairs(16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss_of(z, positive, negative, 0.01, **kind)
    expected = loss_of(exact, positive, negative, 0.01, **kind)
    value.backward()
    expected.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(z.grad.double(), exact.grad, rtol=1e-4, atol=1e-4)


def test_an_ignored_item_may_have_a_far_larger_similarity() -> None:
    """The similarity of a row to itself is 1 / T = 100, and to all others -100: exponentials exceed
    float32.
    """
    z = F.normalize(
        torch.tensor([[1.0, 0.01], [-1.0, 0.0], [-1.0, 0.02], [1.0, 0.0]]), dim=1
    ).requires_grad_()
    positive = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0.0]])
    negative = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0.0]])
    for kind in KINDS:
        total = sum_of(z, positive, negative, 0.01, **kind)
        (gradient,) = torch.autograd.grad(total.loss, z)
        assert torch.isfinite(total.loss) and torch.isfinite(gradient).all()


def test_values_that_are_not_finite_reach_the_loss() -> None:
    z, positive, negative = random_relation(7, 2)
    z[3] = torch.nan
    for kind in KINDS:
        assert not torch.isfinite(loss_of(z, positive, negative, **kind))


def test_anchors_without_a_positive_are_excluded() -> None:
    z, positive, negative = random_relation(7, 2)
    assert sum_of(z, positive, negative).weight.item() == pytest.approx(
        positive.sum(1).clamp(max=1).sum().item()
    )


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("rows_at_once", [1, 4, 7, None])
def test_blocks_of_any_size_equal_the_whole_matrix(kind: dict[str, object], rows_at_once: int | None) -> None:
    """More columns than rows, repulsion above 1 for pairs without attraction, anchors without a negative."""
    z, positive, negative = random_relation(13, 4)
    negative[2, positive[2] == 0] = 3.0
    negative[5] = 0
    rows, columns = F.normalize(z[:11], dim=1).requires_grad_(), F.normalize(z, dim=1).requires_grad_()
    positive, negative = positive[:11], negative[:11]
    found = contrastive_sum(rows, columns, known(positive, negative), 0.1, rows_at_once=rows_at_once, **kind)  # type: ignore[arg-type]
    expected = whole_matrix_sum(
        rows @ columns.T,
        positive,
        negative,
        0.1,
        str(kind.get("denominator", "all")),
        bool(kind.get("decoupled", False)),
    )
    torch.testing.assert_close((found.loss, found.weight), expected, atol=1e-12, rtol=1e-12)
    for one, other in zip(
        torch.autograd.grad(found.loss, (rows, columns)),
        torch.autograd.grad(expected[0], (rows, columns)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("rows_at_once", [4, None])
@pytest.mark.parametrize("max_dense", [0, 13])
def test_items_compared_with_themselves_are_rows_and_columns(
    kind: dict[str, object], rows_at_once: int | None, max_dense: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the gradients of all pairs at once, and block by block."""
    monkeypatch.setattr("medcl3d.losses.contrastive.MAX_DENSE", max_dense)
    z, positive, negative = random_relation(13, 6)
    z, relate_block, how = (
        F.normalize(z, dim=1),
        known(positive, negative),
        {"rows_at_once": rows_at_once} | kind,
    )
    one, two = z.clone().requires_grad_(), z.clone().requires_grad_()
    found = contrastive_sum(one, None, relate_block, 0.1, **how)  # type: ignore[arg-type]
    expected = contrastive_sum(two, two * 1, relate_block, 0.1, **how)  # type: ignore[arg-type]
    assert torch.equal(found.loss, expected.loss) and torch.equal(found.weight, expected.weight)
    torch.testing.assert_close(
        *torch.autograd.grad(3 * found.loss, one),
        *torch.autograd.grad(3 * expected.loss, two),
        atol=1e-12,
        rtol=1e-12,
    )


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("as_slice", [True, False])
def test_columns_outside_the_tile_repel(kind: dict[str, object], as_slice: bool) -> None:
    z, positive, negative = random_relation(12, 5)
    positive[:6, 6:] = positive[6:, :6] = 0
    negative[:6, 6:] = negative[6:, :6] = 1
    z.requires_grad_()

    def near(block: slice, similarity: Tensor) -> Tile:
        columns = torch.arange(12)[block] // 6 * 6 + torch.arange(6)[:, None]
        some: Tensor | slice = columns.flatten().unique()
        if as_slice:
            some = slice(int(columns.min()), int(columns.max()) + 1)
        return Tile(Relation(positive[block][:, some], negative[block][:, some]), some)

    unit = F.normalize(z, dim=1)
    found = contrastive_sum(unit, unit, near, 0.2, rows_at_once=3, **kind)  # type: ignore[arg-type]
    expected = sum_of(z, positive, negative, **kind)
    torch.testing.assert_close(
        (found.loss, found.weight), (expected.loss, expected.weight), atol=1e-12, rtol=1e-12
    )
    torch.testing.assert_close(
        *torch.autograd.grad(found.loss, z), *torch.autograd.grad(expected.loss, z), atol=1e-12, rtol=1e-12
    )


@pytest.mark.parametrize("temperature", [0.01, 0.2])
@pytest.mark.parametrize("columns", [None, slice(2, 16), torch.tensor([1, 4, *range(6, 18)])], ids=str)
def test_a_listed_relation_has_the_loss_of_all_pairs(
    temperature: float, columns: slice | Tensor | None
) -> None:
    """Rows with several positives, with none, and with all other columns ignored."""
    num_cols, rng = 14 if columns is not None else 20, np.random.default_rng(0)
    kind = rng.choice(3, (6, num_cols), p=[0.6, 0.2, 0.2])  # repel, attract, ignore
    kind[1][kind[1] == 1] = 0
    kind[2] = 2
    whole = Relation(torch.from_numpy(kind == 1).double(), torch.from_numpy(kind == 0).double())
    attract, ignored = (np.nonzero(kind == one) for one in (1, 2))
    pairs = ListedPairs((6, num_cols), attract, ignored)  # type: ignore[arg-type]
    random = torch.Generator().manual_seed(0)
    rows, others = (torch.randn(n, 5, generator=random, dtype=torch.float64) for n in (6, 20))
    found = []
    for relation in (whole, Relation.of(pairs)):
        z, w = (F.normalize(x, dim=1).requires_grad_() for x in (rows, others))
        tile = Tile(relation, columns)
        total = contrastive_sum(z, w, lambda block, similarity, tile=tile: tile, temperature)
        found.append((total.loss, total.weight, *torch.autograd.grad(total.loss, (z, w))))
    assert found[0][1] == 4
    torch.testing.assert_close(*found, atol=1e-12, rtol=1e-12)

"""Two ranks compared with one process: loss and gradients, with unequal numbers of valid items."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from medcl3d.config.field_types import Choice
from medcl3d.core.embeddings import Embeddings
from medcl3d.core.errors import DataError
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relate, Relation, related
from medcl3d.losses import contrastive
from medcl3d.objectives.contrast import contrast
from medcl3d.objectives.relating import EmbeddingQueue, Relating
from medcl3d.pairs import link, needs_features
from medcl3d.pairs.augmented_views import AugmentedViews
from medcl3d.pairs.combinators import Sum
from medcl3d.pairs.hard_negatives import HardNegatives

N = 12


def keys_of(sample: Tensor, valid: Tensor) -> Keys:
    """Points of a few samples; invalid ones have no position."""
    n = len(sample)
    ids = torch.full((n,), -1, dtype=torch.int64)
    position = torch.where(valid[:, None], 0.0, torch.nan).double().expand(n, 3).contiguous()
    numbers = torch.zeros(n, 3, dtype=torch.float64)
    axes = torch.eye(3, dtype=torch.float64).expand(n, 3, 3).contiguous()
    view = torch.arange(n) % 2
    return Keys(
        sample,
        view,
        ids,
        ids,
        ids,
        ids,
        ids,
        numbers[:, 0],
        numbers,
        numbers,
        axes,
        numbers,
        numbers,
        torch.zeros_like(ids),
        position,
        {"age": numbers[:, 1]},
    )


def relate(rows: Keys, cols: Keys, similarity: Tensor | None) -> Relation:
    """Soft attraction that decreases with the difference of sample numbers; some pairs have a budget."""
    gap = (rows.sample[:, None] - cols.sample).abs().double()
    positive = torch.where(gap < 3, 1 / (1 + gap), 0.0)
    relation = related(rows, cols, positive, torch.where(gap == 4, 0.0, 1 - positive))
    return dataclasses.replace(relation, budget=torch.where(gap == 4, 0.3, torch.nan))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4)).double()

    def forward(self, x: Tensor, keys: Keys) -> Tensor:
        loss = contrast(
            Embeddings(F.normalize(self.layers(x), dim=1), keys),
            Relating(relate, budget_weight=3.0),
            0.2,
            "all",
            False,
        )
        self.metrics = loss.metrics
        return loss.value


def data() -> tuple[Tensor, Keys]:
    """Rank 0 has the first half, with five valid items; rank 1 has six items, one of them invalid."""
    x = torch.randn(N, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    valid = torch.ones(N, dtype=torch.bool)
    valid[[2, 7, 8, 9]] = False
    return x, keys_of(torch.arange(N) // 2, valid)


def run_rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    # Blocks of two rows, so that each rank has several and the last one is not full.
    contrastive.PAIRS_AT_ONCE, contrastive.MIN_ROWS = 1, 2
    x, keys = data()
    mine = slice(rank * N // world, (rank + 1) * N // world)
    model = Model()
    wrapped = DistributedDataParallel(model)
    wrapped(x[mine], keys[mine]).backward()
    gradients = [p.grad for p in model.parameters()]
    torch.save({"gradients": gradients, "metrics": model.metrics}, f"{folder}/{rank}.pt")
    dist.barrier()
    del wrapped  # it holds the process group, whose threads must end before the process
    gc.collect()
    dist.destroy_process_group()


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    mp.spawn(run_rank, args=(2, str(tmp_path)), nprocs=2)
    model = Model()
    x, keys = data()
    model(x, keys).backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for gradient, parameter in zip(found["gradients"], model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, atol=1e-12, rtol=1e-10)
        for name in (
            "loss",
            "positives_per_anchor",
            "effective_negatives",
            "fraction_ignored",
            "alignment",
            "uniformity",
            "budget_excess",
            "pairs_with_budget",
        ):
            torch.testing.assert_close(found["metrics"][name], model.metrics[name], atol=1e-9, rtol=1e-6)


def test_points_without_a_position_are_left_out() -> None:
    x, keys = data()
    use = torch.isfinite(keys.position_mm).all(1)
    whole = contrast(Embeddings(F.normalize(x), keys), Relating(relate), 0.2, "all", False)
    part = contrast(Embeddings(F.normalize(x[use]), keys[use]), Relating(relate), 0.2, "all", False)
    torch.testing.assert_close(whole.value, part.value)


def test_a_batch_without_any_positive_is_an_error() -> None:
    x, keys = data()
    without_positives = dataclasses.replace(keys, sample=torch.arange(N) * 100)
    with pytest.raises(DataError, match="no anchor of this batch has a positive"):
        contrast(Embeddings(F.normalize(x), without_positives), Relating(relate), 0.2, "all", False)


@pytest.mark.parametrize(
    ("relation", "across"),
    [
        (AugmentedViews().relate, ("sample",)),
        (AugmentedViews().relate, ("scan", "sample")),
        (relate, None),
    ],
)
@pytest.mark.parametrize("mixed", [True, False])
def test_blocks_give_the_loss_gradient_and_metrics_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, relation: Relate, across: tuple[str, ...] | None, mixed: bool
) -> None:
    """mixed: items that share a key are not consecutive."""
    x, keys = data()
    keys = dataclasses.replace(keys, scan=keys.sample // 2)
    if mixed:
        order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
        x, keys = x[order], keys[order]
    shapes: list[tuple[int, int]] = []

    def counted(rows: Keys, cols: Keys, similarity: Tensor | None) -> Relation:
        shapes.append((len(rows), len(cols)))
        assert similarity is not None and similarity.shape == shapes[-1]
        return relation(rows, cols, similarity)

    found = []
    for rows_at_once in (N, 3):
        monkeypatch.setattr(contrastive, "PAIRS_AT_ONCE", 1)
        monkeypatch.setattr(contrastive, "MIN_ROWS", rows_at_once)
        z = F.normalize(x, dim=1).requires_grad_()
        loss = contrast(Embeddings(z, keys), Relating(counted, constant_across=across), 0.2, "all", False)
        loss.value.backward()
        assert z.grad is not None
        found.append({**loss.metrics, "gradient": z.grad})
    for name, value in found[0].items():
        torch.testing.assert_close(
            found[1][name], value, rtol=1e-6 if name != "gradient" else 1e-12, atol=1e-12
        )
    valid = int(torch.isfinite(keys.position_mm).all(1).sum())
    assert shapes[0] == (valid, valid)
    if across is not None:
        assert max(cols for _, cols in shapes[1:]) < valid, "items without a shared key are not related"


def test_features_are_linked_once_and_only_if_a_part_needs_them() -> None:
    x, keys = data()
    z = F.normalize(x, dim=1).float()
    views, hard = (
        Choice("augmented_views"),
        Choice("hard_negatives", {"inner": Choice("augmented_views"), "temperature": 0.2}),
    )
    for parts, linked in (((views, views), False), ((views, hard), True)):
        strategy = Sum(parts=parts)
        assert needs_features(strategy) == linked
        with torch.autocast("cpu", dtype=torch.bfloat16):  # which must not reach the similarities
            relate_block = Relating(strategy.relate, strategy).tiles(keys, keys, z, z)
        whole = strategy.relate(*link(strategy, keys, keys, z @ z.T), z @ z.T)
        for block in (slice(0, 5), slice(5, N)):
            tile = relate_block(block, z[block] @ z.T).relation
            torch.testing.assert_close(
                (tile.positive, tile.negative), (whole.positive[block], whole.negative[block])
            )


def test_the_queue_survives_a_step_that_was_not_finite() -> None:
    x, keys = data()
    z = F.normalize(x, dim=1).float()
    support = EmbeddingQueue(8, 4, keys)
    spoilt = z[:, :4].clone()
    spoilt[[1, 3]] = torch.nan
    spoilt[4, 0] = torch.inf
    support.keep(spoilt[:6], keys.matrix()[:6])
    kept, of_kept = support.content()
    assert torch.equal(kept, spoilt[[0, 2, 5]]) and of_kept.view.tolist() == keys.view[[0, 2, 5]].tolist()


@pytest.mark.parametrize("detach", [False, True])
def test_the_gradient_through_the_weights_of_a_queue_is_the_slope_of_the_loss(detach: bool) -> None:
    """As in MoCo v2: negatives of the batch are removed from a relation that depends on similarities."""
    x, keys = data()
    fields = {"concentration": 2.0, "temperature": 0.5, "detach_weights": detach}
    strategy = HardNegatives(inner=Choice("augmented_views"), **fields)  # type: ignore[arg-type]
    earlier = F.normalize(torch.randn(8, 5, generator=torch.Generator().manual_seed(2)), dim=1)

    def loss(values: Tensor) -> Tensor:
        support = EmbeddingQueue(8, 5, keys)
        support.keep(earlier, dataclasses.replace(keys, sample=keys.sample + 100)[:8].matrix())
        rows = Embeddings(F.normalize(values, dim=1), keys)
        relating = Relating(strategy.relate, strategy, support)
        return contrast(rows, relating, 0.5, "all", False, only_queue_repels=True).value

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    slope = (loss(x + 1e-3 * direction) - loss(x - 1e-3 * direction)) / 2e-3
    assert (abs(float((gradient * direction).sum() - slope)) < 2e-3) is not detach

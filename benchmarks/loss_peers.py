"""Benchmark of the contrastive loss beside NT-Xent of other libraries, alternated in one process."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.losses import (
    DIM,
    LIGHTLY,
    OURS,
    PLAIN,
    SAMPLES_PER_SCAN,
    TEMPERATURE,
    lightly_loss,
    ours,
    plain,
)
from benchmarks.measure import Bench, Table, compared, one_core, turns_of
from medcl3d.distributed.memory import keep_freed_memory

METRIC_LEARNING = "pytorch-metric-learning NTXentLoss"
LEAST = "matrix products and exponential alone"
TITLE = "Contrastive losses beside other libraries"
COLUMNS = ("embeddings", "loss", "ms", f"speed-up over the {PLAIN}")
NAMES = ("augmented_views", "overlapping_crops")


def loss_peers(bench: Bench) -> Table:
    """Loss and gradient of some hundreds to thousands of embeddings, with two views per sample."""
    keep_freed_memory()
    rows: list[tuple[str, ...]] = []
    lightly = lightly_loss()
    for n in bench.scale.few_embeddings:
        losses: dict[str, Callable[[Tensor], Tensor]] = {name: ours(*OURS[name], n) for name in NAMES}
        losses[PLAIN] = plain(n)
        if lightly is not None:
            losses[LIGHTLY] = lightly
        if find_spec("pytorch_metric_learning") is not None and n <= 256:  # it lists all pairs
            losses[METRIC_LEARNING] = _metric_learning(n)
        with one_core():
            times = max(1, 1024 // n)
            works = {name: _forward_and_backward(loss, n, times) for name, loss in losses.items()}
            works[LEAST] = _least_work(n, times)
            seconds = bench.turns(f"{n} embeddings", works)
        ms = {name: 1000 * one / times for name, one in seconds.items()}
        rows += compared(ms, PLAIN, ".2f", first=[str(n)], inverse=True)
    note = (
        f"Embeddings of {DIM} numbers in float32, forward and backward, processor time of one core, "
        f"{turns_of(bench.scale.repeats)}, in a process that keeps freed memory. The {PLAIN} is NT-Xent as a "
        "cross-entropy of similarities, without a relation; the times of `augmented_views` and "
        f"`overlapping_crops` ({SAMPLES_PER_SCAN} samples per scan) include that of their relation. "
        f"{LEAST.capitalize()}: two products, of which the gradient of symmetric pairs needs no third, and "
        "the sum of exponentials, without autograd, which a loss of all pairs needs."
    )
    return Table(TITLE, COLUMNS, tuple(rows), note)


def _embeddings(n: int) -> Tensor:
    return F.normalize(torch.randn(n, DIM, generator=torch.Generator().manual_seed(0)), dim=1)


def _forward_and_backward(loss: Callable[[Tensor], Tensor], n: int, times: int) -> Callable[[], None]:
    z = _embeddings(n).requires_grad_()

    def run() -> None:
        for _ in range(times):
            z.grad = None
            loss(z).backward()

    return run


def _least_work(n: int, times: int) -> Callable[[], None]:
    z, pairs = _embeddings(n), torch.empty(n, n)

    def run() -> None:
        for _ in range(times):
            torch.mm(z, z.T, out=pairs)
            pairs.exp_().sum(1)
            pairs @ z

    return run


def _metric_learning(n: int) -> Callable[[Tensor], Tensor]:
    from pytorch_metric_learning.losses import NTXentLoss

    loss: Any = NTXentLoss(temperature=TEMPERATURE)
    labels = torch.arange(n) // 2
    return lambda z: loss(z, labels)

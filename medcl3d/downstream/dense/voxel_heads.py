"""Classifiers of voxels: multinomial logistic regression, and a network with one hidden layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medcl3d.downstream.dense.controls import DescribedVoxels
from medcl3d.downstream.dense.nearest_voxel import Scale
from medcl3d.downstream.dense.voxel_features import VALUES_AT_ONCE, ScanFeatures

MAX_ITERATIONS = 100
HIDDEN = 128
EPOCHS, BATCH, RATE, DECAY = 20, 512, 2e-3, 1e-2
BLOCK_MM = 32.0
"""Edge of the blocks that alternate between training and validation if one scan is labelled."""


@dataclass(frozen=True)
class LabelledVoxels:
    """Features ``[N, F]``, classes ``Int64[N]``, weights ``[N]`` and the fold of each voxel ``Int[N]``."""

    features: Tensor
    classes: Tensor
    weights: Tensor
    folds: np.ndarray

    def where(self, chosen: np.ndarray) -> LabelledVoxels:
        """The voxels with a true entry."""
        keep = torch.from_numpy(np.flatnonzero(chosen))
        return LabelledVoxels(self.features[keep], self.classes[keep], self.weights[keep], self.folds[chosen])


def fold_of_blocks(place: np.ndarray) -> np.ndarray:
    """``Int[N]``: 0 or 1 for positions ``[N, 3]`` in mm, in blocks that alternate along every axis."""
    found: np.ndarray = np.floor(place / BLOCK_MM).astype(np.int64).sum(1) % 2
    return found


@dataclass(frozen=True)
class LinearHead:
    """Scores ``features @ weight + bias``: ``[F, K]``, ``[K]``."""

    weight: Tensor
    bias: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """``Float32[N, K]`` of features ``[N, F]``."""
        return features @ self.weight + self.bias

    def predict(self, described: DescribedVoxels) -> np.ndarray:
        """Class indices ``Int16[D, H, W]`` of a scan."""
        if isinstance(described, ScanFeatures):
            return described.classify(self.weight, self.bias)
        return predict_in_parts(self, described)


@dataclass(frozen=True)
class NonlinearHead:
    """A network with one hidden layer on standardised features."""

    scale: Scale
    network: nn.Module

    @torch.no_grad()
    def scores(self, features: Tensor) -> Tensor:
        """``Float32[N, K]`` of features ``[N, F]``."""
        found: Tensor = self.network(self.scale.apply(features))
        return found

    def predict(self, described: DescribedVoxels) -> np.ndarray:
        """Class indices ``Int16[D, H, W]`` of a scan."""
        return predict_in_parts(self, described)


Head = LinearHead | NonlinearHead


def predict_in_parts(head: Head, described: DescribedVoxels) -> np.ndarray:
    """Class indices ``Int16[D, H, W]`` of a scan, a bounded number of voxels at a time."""
    total = int(np.prod(described.shape))
    found = np.empty(total, dtype=np.int16)
    at_once = max(1, VALUES_AT_ONCE // described.at(np.zeros((1, 3), dtype=int)).shape[1])
    for start in range(0, total, at_once):
        flat = np.arange(start, min(total, start + at_once))
        voxels = np.stack(np.unravel_index(flat, described.shape), axis=1)
        found[flat] = head.scores(described.at(voxels)).argmax(1).numpy()
    return found.reshape(described.shape)


def fit_linear(known: LabelledVoxels, num_classes: int, inverse_strengths: Sequence[float]) -> LinearHead:
    """Multinomial logistic regression by L-BFGS, its penalty chosen by cross-validation over the folds.

    inverse_strengths  scikit-learn's C: the loss is the sum over voxels, whose weights have mean 1, plus the
                       squared weights / (2 C)

    The strength with the highest macro Dice of the weighted voxels of the other folds is used, the smallest C
    among equals; the middle one if a fold has no voxels of a structure. Each fit starts from that of the next
    smaller C.
    """
    scale = Scale.of(known.features)
    standard = LabelledVoxels(
        scale.apply(known.features), known.classes, known.weights / known.weights.mean(), known.folds
    )
    ordered = sorted(inverse_strengths)
    folds = sorted(set(known.folds.tolist()))
    best = ordered[len(ordered) // 2]
    if len(ordered) > 1 and len(folds) > 1:
        scores = np.zeros((len(folds), len(ordered)))
        for row, fold in zip(scores, folds, strict=True):
            train, test = standard.where(known.folds != fold), standard.where(known.folds == fold)
            start = None
            for number, c in enumerate(ordered):
                start = _logistic(train, num_classes, c, start)
                row[number] = macro_dice(test, start.scores(test.features).argmax(1), num_classes)
        if np.isfinite(scores).all():
            best = ordered[int(np.argmax(scores.sum(axis=0)))]
    found = None
    for c in ordered[: ordered.index(best) + 1]:
        found = _logistic(standard, num_classes, c, found)
    assert found is not None
    weight = found.weight / scale.deviation[:, None]
    return LinearHead(weight, found.bias - scale.mean @ weight)


def _logistic(known: LabelledVoxels, num_classes: int, c: float, start: LinearHead | None) -> LinearHead:
    shape = known.features.shape[1], num_classes
    weight = (torch.zeros(shape) if start is None else start.weight).clone().requires_grad_()
    bias = (torch.zeros(num_classes) if start is None else start.bias).clone().requires_grad_()
    mean, penalty = known.weights / known.weights.sum(), 0.5 / (c * float(known.weights.sum()))
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MAX_ITERATIONS,
        tolerance_grad=1e-5,
        tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        each = F.cross_entropy(known.features @ weight + bias, known.classes, reduction="none")
        loss = (each * mean).sum() + penalty * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return LinearHead(weight.detach(), bias.detach())


def macro_dice(known: LabelledVoxels, predicted: Tensor, num_classes: int) -> float:
    """Mean over structures of the Dice that weighted voxels estimate; without background and absent ones.

    NaN if there are no structures.
    """
    right = torch.where(predicted == known.classes, known.weights, 0.0)

    def volume(classes: Tensor, weights: Tensor) -> Tensor:
        return torch.zeros(num_classes, dtype=weights.dtype).index_add_(0, classes, weights)

    true, found = volume(known.classes, known.weights), volume(predicted, known.weights)
    dice = 2 * volume(known.classes, right) / (true + found)
    return float(dice[1:][true[1:] > 0].mean())


def fit_nonlinear(known: LabelledVoxels, num_classes: int, seed: int) -> NonlinearHead:
    """A hidden layer of 128 units, trained by AdamW with a cosine schedule for 20 epochs; reproducible."""
    scale = Scale.of(known.features)
    features, weights = scale.apply(known.features), known.weights / known.weights.mean()
    draw = torch.Generator().manual_seed(seed)
    first, last = nn.Linear(features.shape[1], HIDDEN), nn.Linear(HIDDEN, num_classes)
    for layer in (first, last):
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=draw)
        nn.init.zeros_(layer.bias)
    network = nn.Sequential(first, nn.ReLU(), last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    steps = EPOCHS * -(-len(features) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        for chosen in torch.split(torch.randperm(len(features), generator=draw), BATCH):
            optimizer.zero_grad()
            each = F.cross_entropy(network(features[chosen]), known.classes[chosen], reduction="none")
            (each * weights[chosen]).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return NonlinearHead(scale, network.eval())

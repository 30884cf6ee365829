"""The most similar voxel of another scan, anywhere or near a place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medcl3d.downstream.probes import MIN_NORM

QUERIES_AT_ONCE = 512


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of every feature ``[F]``."""

    mean: Tensor
    deviation: Tensor

    @staticmethod
    def of(features: Tensor, parts: Sequence[int] | None = None) -> Scale:
        """The statistics of features ``[N, F]``; a constant feature keeps its scale.

        parts  numbers of features that are divided by the square root of their number too, so that every
               part, as a feature map, counts equally in a cosine, whatever its width
        """
        mean, deviation = features.double().mean(0), features.double().std(0, correction=0)
        constant = deviation <= MIN_NORM * mean.abs().clamp(min=1e-12)
        widths = torch.cat([torch.full((n,), float(n)) for n in parts or (1,) * features.shape[1]])
        return Scale(mean.float(), torch.where(constant, 1.0, deviation).float() * widths.sqrt())

    def apply(self, features: Tensor) -> Tensor:
        """Standardised features ``[N, F]``."""
        return (features - self.mean) / self.deviation

    def directions(self, features: Tensor) -> Tensor:
        """Unit vectors of standardised features ``[N, F]``; those of constant features stay near 0."""
        standard = self.apply(features)
        unit: Tensor = standard / standard.norm(dim=1, keepdim=True).clamp(min=MIN_NORM)
        return unit


@dataclass(frozen=True)
class Near:
    """Candidates within `radius_mm` of the place of each query: places ``[N, 3]`` and ``[M, 3]`` in mm."""

    queries: np.ndarray
    candidates: np.ndarray
    radius_mm: float


@dataclass(frozen=True)
class Matches:
    """Cosine and index ``[N, k]`` of the best candidates of each query, best first.

    A query without a candidate within the radius has the cosine -inf and the candidate nearest in place.
    """

    cosine: np.ndarray
    index: np.ndarray


def nearest(
    queries: Tensor, candidates: Tensor, k: int = 1, near: Near | None = None
) -> tuple[Matches, Matches | None]:
    """The k candidates with the highest cosine, among all, and among those near the place of the query.

    queries, candidates  unit vectors ``[N, F]``, ``[M, F]``
    """
    k = min(k, len(candidates))
    anywhere: list[tuple[Tensor, Tensor]] = []
    within: list[tuple[Tensor, Tensor]] = []
    if near is not None:
        q, c = torch.from_numpy(near.queries).double(), torch.from_numpy(near.candidates).double()
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        part = slice(start, start + QUERIES_AT_ONCE)
        cosine = queries[part] @ candidates.T
        anywhere.append(_best(cosine, k))
        if near is not None:
            distance = torch.cdist(q[part], c)
            cosine.masked_fill_(distance > near.radius_mm, -torch.inf)
            best, index = _best(cosine, k)
            without = best[:, :1].isinf()
            within.append((best, torch.where(without, distance.argmin(1, keepdim=True), index)))
    return _joined(anywhere), _joined(within) if near is not None else None


def _best(cosine: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if k == 1:
        best, index = cosine.max(dim=1, keepdim=True)
        return best, index
    best, index = cosine.topk(k, dim=1)
    return best, index


def _joined(parts: list[tuple[Tensor, Tensor]]) -> Matches:
    cosine, index = (torch.cat([part[i] for part in parts]).numpy() for i in range(2))
    return Matches(cosine, index)

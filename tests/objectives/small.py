"""A batch of a few tiny views without a store, for tests of objectives."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from medcl3d.config.choices import choice_in_list
from medcl3d.core.batch import PairBatch, Points, ViewGroup
from medcl3d.core.embeddings import Embeddings
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation, related
from medcl3d.encoders import ENCODERS
from medcl3d.encoders.network import Network, build_network
from medcl3d.objectives import OBJECTIVES
from medcl3d.objectives.relating import EmbeddingQueue, Relating

SIDE = 8
NAMES = OBJECTIVES.names()
# Fields with which all mechanisms work in a small batch: queues, centres, batch norm, few prototypes.
FIELDS: dict[str, dict[str, Any]] = {
    "moco": {"queue_size": 12, "predictor": True, "momentum": 0.9},
    "byol": {"norm": "batch", "momentum": 0.9},
    "simsiam": {"norm": "batch"},
    "barlow_twins": {"out_dim": 6},
    "swav": {"num_prototypes": 5, "queue_size": 8},
    "dino": {"num_prototypes": 16, "koleo": 0.1, "momentum": 0.9, "center_momentum": 0.5},
    "dense": {"num_points": 4},
    "global_dense": {"num_points": 4},
    "distance_regression": {"num_points": 4, "scale_mm": 4.0},
    "mae": {"block": (4, 4, 4)},
    "mae_contrastive": {"block": (4, 4, 4)},
}


def keys_of(sample: Tensor, view: Tensor) -> Keys:
    """Keys of views whose scan ids equal their sample ids."""
    n = len(sample)
    none, zero = torch.full((n,), -1, dtype=torch.int64), torch.zeros(n, 3, dtype=torch.float64)
    axes = torch.eye(3, dtype=torch.float64).expand(n, 3, 3).contiguous()
    nowhere = torch.full((n, 3), torch.nan, dtype=torch.float64)
    return Keys(
        sample,
        view,
        sample,
        sample,
        sample,
        none,
        none,
        zero[:, 0],
        zero,
        zero,
        axes,
        zero,
        zero,
        none,
        nowhere,
    )


def relate(rows: Keys, cols: Keys, similarity: Tensor | None) -> Relation:
    """P = 1 within a sample, except sample 1 without a positive; samples 0 and 3 attract weakly."""
    same = (rows.sample[:, None] == cols.sample) & (rows.sample[:, None] != 1)
    near = ((rows.sample[:, None] % 3) == 0) & ((cols.sample % 3) == 0) & (rows.point[:, None] == cols.point)
    return related(rows, cols, torch.where(same, 1.0, 0.25 * near))


def batch_of(samples: range, num_local: int = 0, seed: int = 0, edge: int = SIDE) -> PairBatch:
    """Two global views per sample, `num_local` of half the size, and four points; samples are drawn
    independently.
    """
    groups, points = [], []
    for role, number, side in (("global", 2, edge), ("local", num_local, edge // 2)):
        if not number:
            continue
        voxels = torch.stack(
            [_noise(seed, s, v, (1, side, side, side)) for s in samples for v in _views(role, number)]
        )
        sample = torch.tensor([s for s in samples for _ in range(number)])
        view = torch.tensor([v for _ in samples for v in _views(role, number)])
        groups.append(
            ViewGroup(
                role,
                voxels,
                torch.eye(4, dtype=torch.float64).repeat(len(voxels), 1, 1),
                keys_of(sample, view),
            )
        )
    for s in samples:
        points.append(_noise(seed, s, 99, (4, 3)).abs().clamp(max=1) * (edge - 1))
    position = torch.stack(points)
    return PairBatch(
        tuple(groups), Points(position, position, position, torch.ones(position.shape[:2], dtype=torch.bool))
    )


def _views(role: str, number: int) -> range:
    return range(number) if role == "global" else range(2, 2 + number)


def _noise(seed: int, sample: int, view: int, shape: tuple[int, ...]) -> Tensor:
    rng = torch.Generator().manual_seed(seed * 10_000 + sample * 100 + view)
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def network_of(encoder: Any, decodes: bool, seed: int = 0) -> Network:
    """The network of an encoder in a configuration."""
    torch.manual_seed(seed)
    return build_network(TypeAdapter(choice_in_list(ENCODERS)).validate_python(encoder), 1, decoder=decodes)


UNET = {"unet3d": {"channels": [4, 8], "strides": [1, 2]}}


class Step(torch.nn.Module):
    """Network, objective and relation as one module in float64, as in a run."""

    def __init__(self, name: str, encoder: Any = UNET, **fields: Any):
        super().__init__()
        constructor = OBJECTIVES.get(name)
        self.network = network_of(encoder, constructor.decodes)
        self.objective: Any = constructor(self.network, **{**FIELDS.get(name, {}), **fields})
        own = self.objective.gate(relate) if hasattr(self.objective, "gate") else relate
        size = getattr(self.objective, "queue_size", 0)
        layout = keys_of(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
        self.relating = Relating(
            own, None, EmbeddingQueue(size, self.objective.dim, layout) if size else None
        )
        self.double()

    def forward(self, batch: PairBatch) -> Tensor:
        loss = self.objective.loss(self.objective.embed(self.network, batch), self.relating)
        self.metrics = loss.metrics
        return loss.value  # type: ignore[no-any-return]


def rows_of(z: Tensor, view: int, samples: int) -> Embeddings:
    """Vectors of one view of each sample."""
    return Embeddings(z, keys_of(torch.arange(samples), torch.full((samples,), view)))

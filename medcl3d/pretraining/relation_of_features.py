"""Relations of strategies whose pairs depend on features, with those of a frozen network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medcl3d.core.batch import PairBatch
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation
from medcl3d.encoders.network import Network
from medcl3d.objectives.dense import point_features
from medcl3d.objectives.relating import EmbeddingQueue, Relating

MIN_NORM = 1e-6  # of a standardised feature vector


@dataclass(frozen=True)
class RelatedFeatures:
    """The columns of a batch (its items, then those of a queue), and the relation to them.

    similarity  ``Float[N, M]`` cosine similarities
    """

    columns: Keys
    relation: Relation
    similarity: Tensor


class RelationOfFeatures:
    """The relation of a strategy, with the features of a frozen network in place of trained embeddings."""

    def __init__(self, network: Network, relating: Relating):
        self.network, self.relating = network, relating
        self.queue: EmbeddingQueue | None = None  # the learner's own is left unchanged

    @torch.no_grad()
    def __call__(self, batch: PairBatch, keys: Keys, valid: Tensor | None) -> RelatedFeatures:
        """Relate the items of a batch and add them to the queue. valid: the rows of points in `keys`."""
        features = self._features(batch, valid)
        z = (features - features.mean(0)) / features.std(0).clamp(min=MIN_NORM)
        z = z / z.norm(dim=1, keepdim=True).clamp(min=MIN_NORM)
        support = self.relating.support
        if support is not None and self.queue is None:
            self.queue = EmbeddingQueue(support.size, z.shape[1], support.layout)
        relating = Relating(self.relating.relate, self.relating.strategy, self.queue)
        columns, column_keys = relating.columns(z, keys)
        similarity = z @ columns.T
        return RelatedFeatures(column_keys, relating(keys, column_keys, similarity), similarity)

    def _features(self, batch: PairBatch, valid: Tensor | None) -> Tensor:
        training = self.network.training
        self.network.eval()
        try:
            if valid is None:
                pooled = [self.network.encoder(group.voxels).pooled for group in batch.groups]
                return torch.cat(pooled).float()
            assert batch.points is not None
            maps = self.network.encoder(batch.main.voxels).maps
            features = [point_features(one, batch.main, batch.points).flatten(0, 1) for one in maps]
            return torch.cat(features, 1).float()[valid]
        finally:
            self.network.train(training)

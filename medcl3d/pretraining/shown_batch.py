"""The batch that pictures of pairs show: its facts, and where each item is in its view and in its scan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from medcl3d.core.batch import PairBatch
from medcl3d.core.errors import DataError
from medcl3d.core.geometry import Box, ViewSpec, triple
from medcl3d.objectives.dense import sample_rows
from medcl3d.pairs import needs_features, queue_size
from medcl3d.pretraining.pair_measures import PairFacts, facts_of
from medcl3d.pretraining.pair_reasons import PairReasons
from medcl3d.pretraining.parts import Pretraining
from medcl3d.pretraining.relation_of_features import RelationOfFeatures
from medcl3d.sampling.augment import make_views
from medcl3d.sampling.raw_batch import RawBatch

MAX_POINTS = 384  # of a picture
MAX_SAMPLES = 32  # related by features: all pairs of their points must fit into memory


@dataclass(frozen=True)
class ShownItem:
    """A view, or a point in a view.

    scan     row of the scan selection
    box      the view's box in its scan
    voxels   ``Float[D, H, W]`` of the augmented view, its first channel
    spacing  ``Float64[3]`` mm per voxel of the augmented view
    voxel    ``Float64[3]`` position in the augmented view: its middle, or the point
    place    ``Float64[3]`` position in the scan's voxels: the middle of the box, or the point
    """

    scan: int
    box: Box
    role: str
    voxels: np.ndarray
    spacing: np.ndarray
    voxel: np.ndarray
    place: np.ndarray
    is_point: bool


@dataclass(frozen=True)
class ShownBatch:
    """A batch with its facts, and earlier batches if a queue holds them."""

    parts: Pretraining
    facts: PairFacts
    batches: tuple[tuple[RawBatch, PairBatch], ...]
    reasons: PairReasons

    def item(self, column: int) -> ShownItem:
        """The item of a column of the relation."""
        key = self.facts.columns[column : column + 1]
        sample, number, point = int(key.sample), int(key.view), int(key.point)
        found = ((b, g, r) for b, g, r in self._rows(sample) if int(b.groups[g].keys.view[r]) == number)
        batch, g, row = next(found)
        group, view = batch.groups[g], self._view(batch, g, row)
        affine = group.affine[row].numpy()
        size = np.array(group.voxels.shape[2:])
        voxel, place = (size - 1) / 2, view.box.center
        if point >= 0:
            assert batch.points is not None
            world = batch.points.position_mm[sample_rows(group)[row], point].numpy()
            voxel = _voxel(affine, world)
            place = _voxel(self.parts.scans.collection.affines[view.scan], world)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        voxels = group.voxels[row, 0].float().numpy()
        return ShownItem(view.scan, view.box, view.role, voxels, spacing, voxel, place, point >= 0)

    def plane(self, scan: int, normal: int, level: int) -> np.ndarray:
        """``Float[X, Y]``: a plane of a scan, first channel."""
        start, size = [0, 0, 0], list(self.parts.scans.collection.shapes[scan])
        start[normal], size[normal] = int(np.clip(level, 0, size[normal] - 1)), 1
        box = Box(triple(start), triple(size))
        row = int(self.parts.scans.rows[scan])
        plane: np.ndarray = self.parts.store.read_crop(row, box)[0].squeeze(normal)
        return plane

    def brightness(self) -> list[float]:
        """The mean of the crop that each row is of, as stored; points in the background come last."""
        raw, crops = self.batches[-1][0], dict[tuple[int, int], np.ndarray]()
        for group in raw.groups:
            ids = zip(group.keys.sample.tolist(), group.keys.view.tolist(), strict=True)
            crops |= zip(ids, group.crops[:, 0].float().numpy(), strict=True)
        keys, found = self.facts.keys, []
        for row, pair in enumerate(zip(keys.sample.tolist(), keys.view.tolist(), strict=True)):
            crop, item = crops[pair], self.item(row)
            voxel = np.rint(item.place - item.box.start).astype(int)
            inside = np.clip(voxel, 0, np.array(crop.shape) - 1)
            in_background = item.is_point and crop[tuple(inside)] < crop.mean()
            found.append(float(crop.mean()) - (float(np.ptp(crop)) if in_background else 0.0))
        return found

    def _rows(self, sample: int) -> Iterator[tuple[PairBatch, int, int]]:
        for _, batch in reversed(self.batches):
            for g, group in enumerate(batch.groups):
                for row in (group.keys.sample == sample).nonzero().flatten().tolist():
                    yield batch, g, row

    def _view(self, batch: PairBatch, g: int, row: int) -> ViewSpec:
        raw = next(raw for raw, made in self.batches if made is batch)
        return raw.groups[g].views[row]


def _voxel(affine: np.ndarray, world: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.linalg.solve(affine[:3, :3], world - affine[:3, 3])
    return found


def shown_batch(parts: Pretraining) -> ShownBatch:
    """The first batch of a pretraining, related before any training.

    Where pairs depend on features, those of the network as it is are used, and of a queue the first batch
    fills it and the second is shown.
    """
    dataset, learner = parts.dataset(), parts.learner
    uses_features = needs_features(parts.strategy)
    features = RelationOfFeatures(learner.network, learner.relating) if uses_features else None
    batches = []
    for step in range(2 if uses_features and queue_size(parts.strategy) and len(dataset) > 1 else 1):
        raw = dataset[step]
        if features is not None:
            raw = next(raw.chunks(MAX_SAMPLES))
        facts = facts_of(raw, learner.relating, learner.recipe, features, MAX_POINTS)
        if not len(facts.keys):
            raise DataError(
                f"pairs.{parts.config.pairs.name}",
                "no point of the first batch is in all views of its sample",
                "draw views that overlap, or choose an objective of whole views",
            )
        with torch.no_grad():
            batches.append((raw, make_views(raw, learner.recipe)))
    return ShownBatch(parts, facts, tuple(batches), PairReasons.of(parts.strategy, parts.store))

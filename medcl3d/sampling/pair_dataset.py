"""From a store and a strategy to this rank's samples of one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor
from torch.utils.data import Dataset

from medcl3d.core.batch import Points
from medcl3d.core.errors import DataError
from medcl3d.core.geometry import ViewSpec
from medcl3d.distributed.seeding import Stream
from medcl3d.pairs import PairStrategy
from medcl3d.pairs.placebo import permutes_body, permutes_points, permutes_regions
from medcl3d.pairs.traits import region_traits_of
from medcl3d.sampling.crops import to_grid, view_affines, view_spacings
from medcl3d.sampling.plan import Plan, RankSlice, stacked
from medcl3d.sampling.raw_batch import RawBatch, RawGroup
from medcl3d.sampling.regions import regions_at
from medcl3d.store.scan_selection import ScanSelection
from medcl3d.store.store import Store

CANDIDATES_PER_POINT = 8


@dataclass(frozen=True)
class PairDataset(Dataset[RawBatch]):
    """Item `step` is this rank's contiguous slice of global batch `step`.

    num_points: number of points that the views of a sample share, 0 for none. The points of a placebo keep
    their pairs and lose their positions or regions; its views and points have the body coordinates of another
    sample of the same anchor.
    """

    store: Store
    scans: ScanSelection
    strategy: PairStrategy
    recipe: Any
    plan: Plan
    steps: int
    rank: int = 0
    world_size: int = 1
    num_points: int = 0
    is_placebo: bool = False

    def __len__(self) -> int:
        return self.steps

    @property
    def per_rank(self) -> int:
        """Samples of one step on this rank."""
        return self._slice.size

    @property
    def _slice(self) -> RankSlice:
        return RankSlice(self.plan, self.rank, self.world_size)

    def __getitem__(self, step: int) -> RawBatch:
        collection = self.scans.collection
        samples = [
            self.strategy.sample(collection, *self.draw(step, index)) for index in range(self.per_rank)
        ]
        return self.collate(step, samples)

    def draw(self, step: int, index: int) -> tuple[int, np.random.Generator]:
        """The anchor of this rank's sample `index` of a step, and the generator of its views."""
        return self._slice.anchor(step, index), self._slice.generator(step, index, Stream.SAMPLE)

    def collate(
        self,
        step: int,
        samples: Sequence[tuple[ViewSpec, ...]],
        crops: Sequence[Sequence[Float[Tensor, "C _ _ _"]]] | None = None,
    ) -> RawBatch:
        """This rank's batch of a step from the drawn views and their crops ``[C, D, H, W]``.

        crops: default: read from the store.
        """
        found: dict[str, list[tuple[int, int]]] = {view.role: [] for view in samples[0]}
        for index, views in enumerate(samples):
            if {view.role for view in views} != set(found):
                raise DataError(f"pairs: one sample has views of {', '.join(found)}, another of other roles")
            for v, view in enumerate(views):
                found[view.role].append((index, v))
        by_role = list(found.values())
        groups = tuple(self._group(step, samples, crops, chosen) for chosen in by_role)
        elsewhere: tuple[RawGroup, ...] | None = None
        if self.is_placebo and permutes_body(self.strategy):
            others = [self._elsewhere(step, index) for index in range(len(samples))]
            elsewhere = tuple(
                self._moved(group, [others[index][v] for index, v in chosen])
                for group, chosen in zip(groups, by_role, strict=True)
            )
            groups = tuple(with_body_of(*pair) for pair in zip(groups, elsewhere, strict=True))
        if not self.num_points:
            return RawBatch(groups)
        stops = np.bincount([index for index, _ in by_role[0]]).cumsum().tolist()
        points = []
        for index, (start, stop) in enumerate(pairwise([0, *stops])):
            rng, other = self._slice.generator(step, index, Stream.POINTS), None
            if elsewhere is not None:
                other = elsewhere[0][start:stop], self._slice.generator(step, index, Stream.PLACEBO_POINTS)
            points.append(self._points(groups[0][start:stop], rng, other))
        return RawBatch(groups, Points.cat(points))

    def _elsewhere(self, step: int, index: int) -> tuple[ViewSpec, ...]:
        """Another sample of the same anchor: a placebo takes its body coordinates."""
        anchor, _ = self.draw(step, index)
        rng = self._slice.generator(step, index, Stream.PLACEBO)
        return self.strategy.sample(self.scans.collection, anchor, rng)

    def _moved(self, group: RawGroup, views: Sequence[ViewSpec]) -> RawGroup:
        """The group with the geometry and keys of other views; its crops are not read again."""
        collection, keys = self.scans.collection, group.keys
        return replace(
            group,
            affine=view_affines(collection, views),
            spacing_mm=view_spacings(collection, views),
            keys=collection.keys(views, keys.sample.numpy(), keys.view.numpy()),
            views=tuple(views),
        )

    def _group(
        self,
        step: int,
        samples: Sequence[tuple[ViewSpec, ...]],
        crops: Sequence[Sequence[Float[Tensor, "C _ _ _"]]] | None,
        chosen: Sequence[tuple[int, int]],
    ) -> RawGroup:
        """The views of one role of all samples; `chosen`: sample in the batch, and view in the sample."""
        collection = self.scans.collection
        views = [samples[index][v] for index, v in chosen]
        draws = [
            self.recipe.draw(self._slice.generator(step, index, Stream.VIEW + v), view.out_shape)
            for (index, v), view in zip(chosen, views, strict=True)
        ]
        run_wide = np.array([self._slice.number(step, index) for index, _ in chosen])
        return RawGroup(
            role=views[0].role,
            crops=self._read(views) if crops is None else torch.stack([crops[i][v] for i, v in chosen]),
            affine=view_affines(collection, views),
            spacing_mm=view_spacings(collection, views),
            parameters=stacked(draws),
            keys=collection.keys(views, run_wide, np.array([v for _, v in chosen])),
            views=tuple(views),
        )

    def _read(self, views: Sequence[ViewSpec]) -> Float[Tensor, "N C D H W"]:
        """The crops of views that have one grid, read into one tensor."""
        crops = torch.empty((len(views), self.store.num_channels, *views[0].out_shape))
        for crop, view in zip(crops, views, strict=True):
            row = int(self.scans.rows[view.scan])
            if view.out_shape == view.box.size:
                self.store.read_crop(row, view.box, crop.numpy())
            else:
                crop.copy_(to_grid(torch.from_numpy(self.store.read_crop(row, view.box)), view))
        return crops

    def _points(
        self,
        group: RawGroup,
        rng: np.random.Generator,
        elsewhere: tuple[RawGroup, np.random.Generator] | None,
    ) -> Points:
        """Points of one sample; `elsewhere`: the sample whose body coordinates they have in a placebo."""
        collection, first = self.scans.collection, group.views[0].scan
        voxels, position, valid = self._shared_positions(group, rng)
        key = position
        if self.is_placebo and permutes_points(self.strategy):
            key = position[_permuted(valid, rng)]
        in_body = position
        if elsewhere is not None:
            first, (_, in_body, _) = elsewhere[0].views[0].scan, self._shared_positions(*elsewhere)
        place = torch.from_numpy(collection.body.place(np.full(len(in_body), first), in_body.numpy()))
        points = Points(position[None], key[None], place[None], valid[None])
        regions = region_traits_of(self.strategy)
        if regions is None:
            return points
        row = int(self.scans.rows[group.views[0].scan])
        found = regions_at(self.store, row, voxels, regions.supervoxel_mm)
        if self.is_placebo and permutes_regions(self.strategy):
            found = found[_permuted(valid, rng).numpy()]
        return replace(points, region=torch.from_numpy(found)[None])

    def _shared_positions(
        self, group: RawGroup, rng: np.random.Generator
    ) -> tuple[Float64[np.ndarray, "P 3"], Float64[Tensor, "P 3"], Bool[Tensor, " P"]]:
        """Positions inside every scan and every global view of a sample, uniform in their intersection.

        In voxels of the scan of its first view and in world mm, and whether each is valid. Only the part
        within the box around the body is used, if there is one. World mm are comparable only if the scans
        share a frame; across frames no point is valid.
        """
        collection, first = self.scans.collection, group.views[0].scan
        # Boxes of one scan intersect on its grid; boxes of other scans are compared in world mm below.
        boxes = [view.box for view in group.views if view.scan == first]
        low = np.maximum(np.max([box.start for box in boxes], axis=0), 0)
        stop = np.minimum(np.min([box.stop for box in boxes], axis=0), collection.shapes[first])
        body = collection.body_boxes[first]
        if (np.minimum(stop, body[1]) > np.maximum(low, body[0])).all():
            low, stop = np.maximum(low, body[0]), np.minimum(stop, body[1])
        low, high = low - 0.5, np.maximum(stop, low) - 0.5
        voxels = rng.uniform(low, high, (self.num_points * CANDIDATES_PER_POINT, 3))
        world = torch.from_numpy(collection.world(np.full(len(voxels), first), voxels))
        shape = group.views[0].out_shape
        affine = group.affine @ self.recipe.voxel_map(group.parameters, shape, group.spacing_mm)
        scans = [view.scan for view in group.views]
        of_scans = _inside(
            world, torch.from_numpy(collection.affines[scans]), torch.from_numpy(collection.shapes[scans])
        )
        inside = _inside(world, affine, torch.tensor(shape).expand(len(affine), 3)) & of_scans
        # A view that is turned or zoomed out shows more than the crop, repeated at its border.
        others = torch.tensor([scan != first for scan in scans])
        if others.any():
            inside &= _inside(world, group.affine[others], torch.tensor(shape).expand(int(others.sum()), 3))
        inside &= bool((high > low).all()) and all(collection.share_frame(first, scan) for scan in scans)
        # The first points inside every view; if they are too few, the rest is marked as not valid.
        chosen = torch.argsort(inside.to(torch.int8), descending=True, stable=True)[: self.num_points]
        return voxels[chosen.numpy()], world[chosen], inside[chosen]


def with_body_of(group: RawGroup, other: RawGroup) -> RawGroup:
    """The views with the body coordinates of another group's views."""
    keys = replace(group.keys, body=other.keys.body, fraction=other.keys.fraction)
    return replace(group, keys=keys)


def _permuted(valid: Bool[Tensor, " P"], rng: np.random.Generator) -> Int64[Tensor, " P"]:
    """A random order of the valid points, which come first; the others keep their places.

    A permutation of all would give some valid points the key of a point that is not shared, and fewer pairs.
    """
    num = int(valid.sum())
    return torch.from_numpy(np.concatenate([rng.permutation(num), np.arange(num, len(valid))]))


def _inside(
    world: Float64[Tensor, "P 3"], affines: Float64[Tensor, "N 4 4"], shapes: Int[Tensor, "N 3"]
) -> Bool[Tensor, " P"]:
    """``Bool[P]``: positions ``[P, 3]`` in mm inside all grids, ``[V, 4, 4]`` of ``[V, 3]`` voxels."""
    inverse = torch.linalg.inv(affines)
    voxels = torch.einsum("vij,pj->vpi", inverse[:, :3, :3], world) + inverse[:, None, :3, 3]
    inside: Tensor = ((voxels >= -0.5) & (voxels <= shapes[:, None] - 0.5)).all(-1).all(0)
    return inside

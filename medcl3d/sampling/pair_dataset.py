"""From a store and a strategy to this rank's samples of one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from torch.utils.data import Dataset

from medcl3d.core.batch import Points
from medcl3d.core.geometry import ViewSpec
from medcl3d.distributed.seeding import Stream
from medcl3d.pairs import PairStrategy
from medcl3d.pairs.placebo import permutes_points, permutes_regions
from medcl3d.pairs.traits import region_traits_of
from medcl3d.sampling.crops import to_grid, view_affine, view_spacing
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
    their pairs and lose their positions or regions.
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
        return self.collate(step, samples, [[self._crop(view) for view in views] for views in samples])

    def draw(self, step: int, index: int) -> tuple[int, np.random.Generator]:
        """The anchor of this rank's sample `index` of a step, and the generator of its views."""
        return self._slice.anchor(step, index), self._slice.generator(step, index, Stream.SAMPLE)

    def collate(
        self,
        step: int,
        samples: Sequence[tuple[ViewSpec, ...]],
        crops: Sequence[Sequence[Float[Tensor, "C _ _ _"]]],
    ) -> RawBatch:
        """This rank's batch of a step from the drawn views and their crops ``[C, D, H, W]``."""
        pairs = enumerate(zip(samples, crops, strict=True))
        return RawBatch.cat([self._sample(step, index, views, voxels) for index, (views, voxels) in pairs])

    def _sample(
        self, step: int, index: int, views: tuple[ViewSpec, ...], crops: Sequence[Float[Tensor, "C _ _ _"]]
    ) -> RawBatch:
        roles = dict.fromkeys(view.role for view in views)
        numbers = [[v for v, view in enumerate(views) if view.role == role] for role in roles]
        groups = tuple(
            self._group(step, index, [views[v] for v in of_role], [crops[v] for v in of_role], of_role)
            for of_role in numbers
        )
        if not self.num_points:
            return RawBatch(groups)
        return RawBatch(groups, self._points(groups[0], self._slice.generator(step, index, Stream.POINTS)))

    def _group(
        self,
        step: int,
        index: int,
        views: list[ViewSpec],
        crops: list[Float[Tensor, "C _ _ _"]],
        numbers: list[int],
    ) -> RawGroup:
        """The views of one role of a sample; `numbers` are theirs within it."""
        collection = self.scans.collection
        draws = [
            self.recipe.draw(self._slice.generator(step, index, Stream.VIEW + v), view.out_shape)
            for v, view in zip(numbers, views, strict=True)
        ]
        run_wide = np.full(len(views), self._slice.number(step, index))
        return RawGroup(
            role=views[0].role,
            crops=torch.stack(crops),
            affine=torch.stack([view_affine(collection, view) for view in views]),
            spacing_mm=torch.stack([view_spacing(collection, view) for view in views]),
            parameters=stacked(draws),
            keys=collection.keys(views, run_wide, np.array(numbers)),
            views=tuple(views),
        )

    def _crop(self, view: ViewSpec) -> Float[Tensor, "C _ _ _"]:
        return to_grid(
            torch.from_numpy(self.store.read_crop(int(self.scans.rows[view.scan]), view.box)), view
        )

    def _points(self, batch: RawGroup, rng: np.random.Generator) -> Points:
        """Positions inside every scan and every global view of the sample, uniform in their intersection.

        Only its part within the box around the body, if there is one. World mm are comparable only if the
        scans share a frame; across frames no point is valid.
        """
        collection, first = self.scans.collection, batch.views[0].scan
        # Boxes of one scan intersect on its grid; boxes of other scans are compared in world mm below.
        boxes = [view.box for view in batch.views if view.scan == first]
        low = np.maximum(np.max([box.start for box in boxes], axis=0), 0)
        stop = np.minimum(np.min([box.stop for box in boxes], axis=0), collection.shapes[first])
        body = collection.body_boxes[first]
        if (np.minimum(stop, body[1]) > np.maximum(low, body[0])).all():
            low, stop = np.maximum(low, body[0]), np.minimum(stop, body[1])
        low, high = low - 0.5, np.maximum(stop, low) - 0.5
        voxels = rng.uniform(low, high, (self.num_points * CANDIDATES_PER_POINT, 3))
        world = torch.from_numpy(collection.world(np.full(len(voxels), first), voxels))
        shape = batch.crops.shape[2:]
        affine = batch.affine @ self.recipe.voxel_map(batch.parameters, tuple(shape), batch.spacing_mm)
        scans = [view.scan for view in batch.views]
        of_scans = _inside(
            world, torch.from_numpy(collection.affines[scans]), torch.from_numpy(collection.shapes[scans])
        )
        inside = _inside(world, affine, torch.tensor(shape).expand(len(affine), 3)) & of_scans
        inside &= bool((high > low).all()) and all(collection.share_frame(first, scan) for scan in scans)
        # The first points inside every view; if they are too few, the rest is marked as not valid.
        chosen = torch.argsort(inside.to(torch.int8), descending=True, stable=True)[: self.num_points]
        position, valid = world[chosen], inside[chosen]
        key = (
            position[torch.from_numpy(rng.permutation(self.num_points))]
            if self.is_placebo and permutes_points(self.strategy)
            else position
        )
        place = torch.from_numpy(collection.body.place(np.full(len(position), first), position.numpy()))
        points = Points(position[None], key[None], place[None], valid[None])
        regions = region_traits_of(self.strategy)
        if regions is None:
            return points
        found = regions_at(
            self.store, int(self.scans.rows[first]), voxels[chosen.numpy()], regions.supervoxel_mm
        )
        if self.is_placebo and permutes_regions(self.strategy):
            found = rng.permutation(found)
        return replace(points, region=torch.from_numpy(found)[None])


def _inside(
    world: Float64[Tensor, "P 3"], affines: Float64[Tensor, "N 4 4"], shapes: Int[Tensor, "N 3"]
) -> Bool[Tensor, " P"]:
    """``Bool[P]``: positions ``[P, 3]`` in mm inside all grids, ``[V, 4, 4]`` of ``[V, 3]`` voxels."""
    inverse = torch.linalg.inv(affines)
    voxels = torch.einsum("vij,pj->vpi", inverse[:, :3, :3], world) + inverse[:, None, :3, 3]
    inside: Tensor = ((voxels >= -0.5) & (voxels <= shapes[:, None] - 0.5)).all(-1).all(0)
    return inside

"""From a store and a strategy to this rank's samples of one step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from medcl3d.core.batch import PairBatch, Points, ViewGroup
from medcl3d.core.collection import Collection
from medcl3d.core.errors import MachineError
from medcl3d.core.geometry import ViewSpec
from medcl3d.distributed.seeding import Stream, generator
from medcl3d.io.shared_memory import REMEDY, num_bytes, refuse_too_little, shared_memory_now
from medcl3d.pairs import PairStrategy
from medcl3d.pairs.batch_grouping import Companions
from medcl3d.pairs.placebo import permutes_points
from medcl3d.sampling.raw_batch import RawBatch, RawGroup
from medcl3d.store.scan_selection import ScansInUse
from medcl3d.store.store import Store

CANDIDATES_PER_POINT = 8
WORKER_TIMEOUT_S = 300


@dataclass(frozen=True)
class Plan:
    """Which anchor each sample of the run starts from: global batches as a function of (seed, epoch).

    companions   which samples stand together in a batch, if a strategy asks for it; an epoch then visits each anchor
                 `samples_per_scan` times
    """

    anchors: np.ndarray
    samples_per_step: int
    seed: int
    companions: Companions | None = None
    _orders: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass; few anchors are visited several times, so that an epoch has a batch."""
        visits = 1 if self.companions is None else self.companions.samples_per_scan
        return max(1, len(self.anchors) * visits // self.samples_per_step)

    def samples(self, step: int) -> tuple[int, np.ndarray]:
        """Epoch of a step, and its anchors ``Int[samples_per_step]``."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        if epoch not in self._orders:
            self._orders.clear()
            self._orders[epoch] = self._order(epoch)
        return epoch, self._orders[epoch][batch]

    def _order(self, epoch: int) -> np.ndarray:
        """``Int[steps_per_epoch, samples_per_step]``"""
        rng = generator(self.seed, epoch, 0, Stream.PLAN)
        wanted = self.steps_per_epoch * self.samples_per_step
        order = np.array([], dtype=np.int64)
        while len(order) < wanted:
            once = rng.permutation(self.anchors)
            order = np.concatenate([order, once if self.companions is None else self.companions.arranged(once, rng)])
        return order[:wanted].reshape(-1, self.samples_per_step)


@dataclass(frozen=True)
class PairDataset(Dataset[RawBatch]):
    """Item `step` is this rank's contiguous slice of global batch `step`.

    num_points: how many points a sample's views share, 0 for none. A placebo's points keep their pairs and
    lose their places.
    """

    store: Store
    scans: ScansInUse
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
        return self.plan.samples_per_step // self.world_size

    def __getitem__(self, step: int) -> RawBatch:
        collection = self.scans.collection
        samples = [self.strategy.sample(collection, *self.draw(step, index)) for index in range(self.per_rank)]
        return self.collate(step, samples, [[self._crop(view) for view in views] for views in samples])

    def draw(self, step: int, index: int) -> tuple[int, np.random.Generator]:
        """The anchor of this rank's sample `index` of a step, and the generator that its views are drawn with."""
        _, anchors = self.plan.samples(step)
        return int(anchors[self.rank * self.per_rank + index]), self._generator(step, index, Stream.SAMPLE)

    def _generator(self, step: int, index: int, stream: int) -> np.random.Generator:
        # A sample's name within its epoch: its place in the epoch's global order.
        epoch, batch = divmod(step, self.plan.steps_per_epoch)
        return generator(self.plan.seed, epoch, batch * self.plan.samples_per_step + self.rank * self.per_rank + index, stream)

    def collate(self, step: int, samples: Sequence[tuple[ViewSpec, ...]], crops: Sequence[Sequence[Tensor]]) -> RawBatch:
        """This rank's batch of a step from what was drawn and its voxels, ``[C, D, H, W]`` for each view of each sample."""
        pairs = enumerate(zip(samples, crops, strict=True))
        return RawBatch.cat([self._sample(step, index, views, voxels) for index, (views, voxels) in pairs])

    def _sample(self, step: int, index: int, views: tuple[ViewSpec, ...], crops: Sequence[Tensor]) -> RawBatch:
        roles = dict.fromkeys(view.role for view in views)
        numbers = [[v for v, view in enumerate(views) if view.role == role] for role in roles]
        groups = tuple(self._group(step, index, [views[v] for v in of_role], [crops[v] for v in of_role], of_role) for of_role in numbers)
        if not self.num_points:
            return RawBatch(groups)
        return RawBatch(groups, self._points(groups[0], self._generator(step, index, Stream.POINTS)))

    def _group(self, step: int, index: int, views: list[ViewSpec], crops: list[Tensor], numbers: list[int]) -> RawGroup:
        """The views of one role of a sample; `numbers` are theirs within it."""
        collection = self.scans.collection
        draws = [
            self.recipe.draw(self._generator(step, index, Stream.VIEW + v), view.out_shape) for v, view in zip(numbers, views, strict=True)
        ]
        run_wide = np.full(len(views), step * self.plan.samples_per_step + self.rank * self.per_rank + index)
        return RawGroup(
            role=views[0].role,
            crops=torch.stack(crops),
            affine=torch.stack([view_affine(collection, view) for view in views]),
            spacing_mm=torch.stack([view_spacing(collection, view) for view in views]),
            parameters={key: torch.stack([torch.as_tensor(one[key]) for one in draws]) for key in draws[0]},
            keys=collection.keys(views, run_wide, np.array(numbers)),
            views=tuple(views),
        )

    def _crop(self, view: ViewSpec) -> Tensor:
        return to_grid(torch.from_numpy(self.store.read_crop(int(self.scans.rows[view.scan]), view.box)), view)

    def _points(self, batch: RawGroup, rng: np.random.Generator) -> Points:
        """Places inside every scan and every global view of the sample, uniform in their intersection.

        World mm mean one place only where the scans share a frame; across frames no point is valid.
        """
        collection, first = self.scans.collection, batch.views[0].scan
        # Boxes of one scan intersect on its grid; of another scan's box, only the world knows where it lies.
        boxes = [view.box for view in batch.views if view.scan == first]
        low = np.maximum(np.max([box.start for box in boxes], axis=0), 0) - 0.5
        high = np.maximum(np.minimum(np.min([box.stop for box in boxes], axis=0), collection.shapes[first]) - 0.5, low)
        voxels = rng.uniform(low, high, (self.num_points * CANDIDATES_PER_POINT, 3))
        world = torch.from_numpy(collection.world(np.full(len(voxels), first), voxels))
        shape = batch.crops.shape[2:]
        affine = batch.affine @ self.recipe.voxel_map(batch.parameters, tuple(shape), batch.spacing_mm)
        scans = [view.scan for view in batch.views]
        of_scans = _inside(world, torch.from_numpy(collection.affines[scans]), torch.from_numpy(collection.shapes[scans]))
        inside = _inside(world, affine, torch.tensor(shape).expand(len(affine), 3)) & of_scans
        inside &= bool((high > low).all()) and all(collection.share_frame(first, scan) for scan in scans)
        # The first that every view sees; where they are too few, the rest is marked as not valid.
        chosen = torch.argsort(inside.to(torch.int8), descending=True, stable=True)[: self.num_points]
        position, valid = world[chosen], inside[chosen]
        key = (
            position[torch.from_numpy(rng.permutation(self.num_points))] if self.is_placebo and permutes_points(self.strategy) else position
        )
        body = torch.from_numpy(collection.body.place(np.full(len(position), first), position.numpy()))
        return Points(position[None], key[None], body[None], valid[None])


def _inside(world: Tensor, affines: Tensor, shapes: Tensor) -> Tensor:
    """``Bool[P]``: places ``[P, 3]`` in mm that lie inside all of the grids, ``[V, 4, 4]`` of ``[V, 3]`` voxels."""
    inverse = torch.linalg.inv(affines)
    voxels = torch.einsum("vij,pj->vpi", inverse[:, :3, :3], world) + inverse[:, None, :3, 3]
    return ((voxels >= -0.5) & (voxels <= shapes[:, None] - 0.5)).all(-1).all(0)


def to_grid(crop: Tensor, view: ViewSpec) -> Tensor:
    """Resample a box's voxels ``[C, D, H, W]`` to its view's grid: linear, averaged along axes that shrink."""
    if view.out_shape == view.box.size:
        return crop
    # Linear samples, enough in each voxel of the view to read all of the box: exact for ramps, unlike a filter.
    times = [-(-size // length) for size, length in zip(view.box.size, view.out_shape, strict=True)]
    fine = [length * n for length, n in zip(view.out_shape, times, strict=True)]
    samples = F.interpolate(crop[None], size=fine, mode="trilinear", align_corners=False)
    return samples[0] if max(times) == 1 else F.avg_pool3d(samples, times)[0]


def view_affine(collection: Collection, view: ViewSpec) -> Tensor:
    """``Float64[4, 4]`` from the voxel indices of a view's grid (before augmentation) to world mm."""
    ratio = np.array(view.box.size) / np.array(view.out_shape)
    grid = np.eye(4)
    grid[:3, :3] = np.diag(ratio)
    grid[:3, 3] = np.array(view.box.start) + (ratio - 1) / 2  # both grids span the same box
    return torch.from_numpy(collection.affines[view.scan] @ grid)


def view_spacing(collection: Collection, view: ViewSpec) -> Tensor:
    """``Float64[3]`` mm per voxel of the view's grid."""
    return torch.from_numpy(collection.spacings[view.scan] * np.array(view.box.size) / np.array(view.out_shape))


def batches_from(dataset: Dataset[Any], steps: int, workers: int, start: int) -> Iterator[Any]:
    """Items `start` .. `steps` - 1 in order, prepared ahead by worker processes (0: by this one).

    With workers, this process makes the first item, which says how much shared memory they need.

    MachineError if shared memory has too little room for the workers, or one of them dies, with what is known of the cause.
    """
    first = [dataset[start]] if workers and start < steps else []
    size = num_bytes(first)
    refuse_too_little(size, workers)
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(start + len(first), steps),
        num_workers=workers,
        timeout=WORKER_TIMEOUT_S if workers else 0,
        pin_memory=torch.cuda.is_available(),
    )
    try:
        ahead = iter(loader)  # the workers begin
        while first:
            yield first.pop()
        yield from ahead
    except RuntimeError as error:
        if "DataLoader" not in str(error):
            raise
        said = str(error).splitlines()[0]
        full = shared_memory_now(size)
        # What ended the worker is either the error itself or the one that it was raised from.
        if full or "shared memory" in f"{error} {error.__cause__}":
            raise MachineError(f"{said}: {full or f'shared memory is full; {REMEDY}'}") from error
        raise MachineError(f"{said}; was it out of memory, or killed? Fewer train.workers need less; the same command resumes") from error


def make_views(raw: RawBatch, recipe: Any) -> PairBatch:
    """Augment a batch on the device it lies on; every view then knows its affine, augmentation included.

    In float32 whatever autocast says: an augmentation is no place to lose digits.
    """
    groups = []
    for group in raw.groups:
        with torch.no_grad(), torch.autocast(group.crops.device.type, enabled=False):
            result = recipe.apply(group.crops, group.parameters, group.spacing_mm)
        groups.append(ViewGroup(group.role, result.voxels, group.affine @ result.voxel_map, group.keys))
    return PairBatch(tuple(groups), raw.points)

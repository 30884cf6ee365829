"""Batches of a pair strategy for your own training loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from medcl3d.config.choices import parse_choice
from medcl3d.config.field_types import Choice
from medcl3d.config.loading import parse
from medcl3d.config.registry import Registry
from medcl3d.core.batch import PairBatch
from medcl3d.core.errors import ConfigError
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation
from medcl3d.pairs import PAIRS, PairStrategy, link, needs_features, queue_size
from medcl3d.pairs.batch_grouping import batch_grouping_of
from medcl3d.sampling.augment import make_views
from medcl3d.sampling.batches import batches_from
from medcl3d.sampling.pair_dataset import PairDataset as StepDataset
from medcl3d.sampling.plan import Plan
from medcl3d.store.scan_selection import DataConfig, ScanSelection, pretraining_scans
from medcl3d.store.store import Store
from medcl3d.views import VIEWS


class PairDataset(Dataset[PairBatch]):
    """Views drawn by a pair strategy from the training patients of a store; item `step` is a batch.

        dataset = PairDataset(store, medcl3d.pairs.OverlappingCrops(min_iou=0.3), patch_size=64, steps=1000)
        for batch in dataset:
            views = batch.main                              # the global views; batch.groups holds all roles
            z = network(views.voxels)                       # Float[N, C, D, H, W]
            relation = dataset.relation(views.keys)         # strategy.relate(keys, keys, None) with checks
            value = loss(z, relation.positive, relation.negative)

    `views.affine` is ``Float64[N, 4, 4]``, from a view's voxels to RAS+ mm, augmentation included.

    A batch depends on `seed` and its step alone, not on the number of workers, so a second pass repeats the
    batches of the first: iterate once over all `steps`, or call `set_epoch`. With worker processes,
    `DataLoader(dataset, batch_size=None, num_workers=4)` makes views on the processor;
    `dataset.batches(workers=4, device="cuda")` reads crops in workers and makes views on the GPU.

    store             a `Store`, or the folder that `prepare` wrote
    strategy          a strategy, as ``medcl3d.pairs.SamePatient()``, or its name, or ``{name: {field:
                      value}}``
    views             a recipe, its name, or ``{name: {field: value}}``
    patch_size        voxels of a view, one number or three
    samples_per_step  samples of a batch, over all ranks; N = samples_per_step / world_size x views per sample
    steps             number of batches (default: one epoch)
    seed              of anchors, crops and augmentation
    num_points        physical points shared by the global views of each sample, as `batch.points` (0: none)
    smaller_than_patch, modalities, fold  as under `data` of a configuration
    rank, world_size  this process gets its contiguous share of each batch

    ConfigError, DataError: a name, a field, or a combination is wrong.
    """

    def __init__(
        self,
        store: Store | str | Path,
        strategy: PairStrategy | str | Mapping[str, Any],
        views: Any = "mri",
        patch_size: int | Sequence[int] = 64,
        samples_per_step: int = 16,
        seed: int = 0,
        *,
        steps: int | None = None,
        num_points: int = 0,
        smaller_than_patch: Literal["error", "pad", "skip"] = "error",
        modalities: Sequence[str] | None = None,
        fold: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        if samples_per_step < 1 or samples_per_step % world_size or not 0 <= rank < world_size:
            problem = f"cannot be divided among world_size = {world_size} (rank = {rank})"
            raise _wrong_size(samples_per_step, problem, "use a multiple of world_size, and a rank below it")
        opened = store if isinstance(store, Store) else Store.open(Path(store).expanduser())
        config = _data_config(opened, patch_size, smaller_than_patch, modalities, fold)
        self.store = opened
        self.strategy: PairStrategy = _built(PAIRS, strategy, "PairDataset: strategy")
        self.recipe = _built(VIEWS, views, "PairDataset: views")
        self.scans: ScanSelection = pretraining_scans(opened, config)
        self.anchors = self.strategy.anchors(self.scans.collection)
        batch_grouping = batch_grouping_of(self.strategy, self.scans.collection)
        if batch_grouping is not None and samples_per_step % batch_grouping.samples_per_group:
            problem = "is not a multiple of the strategy's batch grouping"
            problem = f"{problem}, {batch_grouping.samples_per_group} samples"
            raise _wrong_size(samples_per_step, problem, "use one")
        self._first = 0
        plan = Plan(self.anchors.ids, samples_per_step, seed, batch_grouping)
        self._raw = StepDataset(
            store=opened,
            scans=self.scans,
            strategy=self.strategy,
            recipe=self.recipe,
            plan=plan,
            steps=plan.steps_per_epoch if steps is None else steps,
            rank=rank,
            world_size=world_size,
            num_points=num_points,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Batches in which each anchor is visited about once."""
        return self._raw.plan.steps_per_epoch

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass yield the batches after `epoch` earlier passes; call it before each pass."""
        self._first = epoch * len(self)

    def __len__(self) -> int:
        return self._raw.steps

    def __getitem__(self, step: int) -> PairBatch:
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of {len(self)}")
        return make_views(self._raw[self._first + step], self.recipe)

    def __iter__(self) -> Iterator[PairBatch]:
        return self.batches()

    def batches(
        self, workers: int = 0, device: torch.device | str = "cpu", start: int = 0
    ) -> Iterator[PairBatch]:
        """Batches from step `start` on; `workers` processes read crops ahead (0: none), `device` makes views.

        MachineError: shared memory is too small for the workers, or one died.
        """
        place = torch.device(device)
        for raw in batches_from(self._raw, self._first + len(self), workers, self._first + start):
            yield make_views(raw.to(place), self.recipe)

    def relation(self, keys: Keys, z: Tensor | None = None) -> Relation:
        """Relation of the items of a batch: `strategy.relate`, after the strategy's `link` if it has one.

        keys  of N items; z: their embeddings ``[N, D]``, which only strategies that depend on features need

        Returns `positive` and `negative`, ``Float[N, N]``. ConfigError: the strategy needs `z`, or an
        embedding queue.
        """
        name = type(self.strategy).__name__
        if queue_size(self.strategy):
            problem = f"{name} compares with an embedding queue, which a dataset does not have"
            raise ConfigError(problem=problem, remedy="train with medcl3d.pretrain")
        if not needs_features(self.strategy):
            return self.strategy.relate(keys, keys, None if z is None else _similarity(z))
        if z is None:
            raise ConfigError(problem=f"{name} depends on features", remedy="use dataset.relation(keys, z)")
        similarity = _similarity(z)
        return self.strategy.relate(*link(self.strategy, keys, keys, similarity), similarity)


def _wrong_size(samples_per_step: int, problem: str, remedy: str) -> ConfigError:
    owner = "PairDataset"
    return ConfigError("samples_per_step", samples_per_step, problem, remedy, owner=owner, colon=False)


def _similarity(z: Tensor) -> Tensor:
    """Cosine similarities ``[N, N]``, without gradient."""
    unit = F.normalize(z.detach().float(), dim=1)
    return unit @ unit.T


def _data_config(
    store: Store,
    patch_size: int | Sequence[int],
    smaller: str,
    modalities: Sequence[str] | None,
    fold: int | None,
) -> DataConfig:
    size = [patch_size] * 3 if isinstance(patch_size, int) else list(patch_size)
    given = {"root": str(store.root), "patch_size": size, "smaller_than_patch": smaller, "fold": fold}
    chosen = None if modalities is None else list(modalities)
    return parse({**given, "modalities": chosen}, DataConfig, "PairDataset")


def _built(registry: Registry, value: Any, name: str) -> Any:
    """An object that was built already, or the one that a name or ``{name: {field: value}}`` describes."""
    if isinstance(value, str):
        return registry.build(parse_choice(registry, value, {}, name))
    if isinstance(value, Choice):
        return registry.build(value)
    if isinstance(value, Mapping):
        if len(value) != 1:
            problem = f"one {registry.kind} is needed, as {{name: {{field: value}}}}, not {len(value)}"
            raise ConfigError(problem=problem, place=name)
        ((chosen, fields),) = value.items()
        return registry.build(parse_choice(registry, chosen, fields or {}, name))
    if isinstance(value, type) or callable(value):
        shown = getattr(value, "__name__", value)
        remedy = f"write {shown}(), with its fields inside"
        raise ConfigError(problem=f"{shown} was not called", remedy=remedy, place=name)
    return value

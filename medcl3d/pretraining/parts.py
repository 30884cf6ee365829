"""The parts of a pretraining: data, strategy, network and objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from medcl3d.core.embeddings import Embedded, Loss
from medcl3d.core.errors import ConfigError, inside
from medcl3d.core.geometry import Box, ViewSpec
from medcl3d.core.relation import Relate
from medcl3d.distributed.collectives import rank, world_size
from medcl3d.distributed.seeding import seed_weights
from medcl3d.encoders.network import Network, build_network
from medcl3d.objectives import (
    OBJECTIVES,
    ComparesPoints,
    FollowsNetwork,
    Objective,
    Scheduled,
    objective_type,
    queue_size_of,
)
from medcl3d.objectives.relating import EmbeddingQueue, GlobalViews, Relating
from medcl3d.pairs import (
    PAIRS,
    PairStrategy,
    all_parts,
    queue_size,
    relates_points,
    traits_of,
)
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.batch_grouping import batch_grouping_of
from medcl3d.pairs.placebo import placebo
from medcl3d.pairs.traits import num_points_of
from medcl3d.pretraining.compatibility import check_parts
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.sampling.augment import make_views
from medcl3d.sampling.pair_dataset import PairDataset
from medcl3d.sampling.plan import Plan
from medcl3d.sampling.raw_batch import RawBatch
from medcl3d.store.scan_selection import ScanSelection, pretraining_scans
from medcl3d.store.store import Store
from medcl3d.training.grad_cache import embed_in_chunks
from medcl3d.training.profile import part_of_forward
from medcl3d.views import VIEWS


class Learner(nn.Module):
    """Network and objective in one module; a call computes the loss of a step.

    grad_cache  samples embedded at a time (0: all at once)
    """

    objective: Objective

    def __init__(
        self, network: Network, objective: Objective, recipe: Any, relating: Relating, grad_cache: int = 0
    ):
        super().__init__()
        self.network, self.objective, self.relating = network, objective, relating
        self.recipe, self.grad_cache = recipe, grad_cache

    def forward(self, raw: RawBatch) -> Loss:
        """The loss of this rank's part of a global batch."""
        self.relating.global_views = GlobalViews.of(raw.main.host_keys)
        embedded = embed_in_chunks(self.embed, raw, self.grad_cache) if self.grad_cache else self.embed(raw)
        device = next(iter(embedded.values())).z.device
        # Projectors return float32, and a product of bfloat16 selects other neighbours.
        with part_of_forward("loss"), torch.autocast(device.type, enabled=False):
            return self.objective.loss(embedded, self.relating)

    def embed(self, raw: RawBatch) -> Embedded:
        """Embeddings of the views of some samples, with their keys."""
        with part_of_forward("views"):
            views = make_views(raw, self.recipe)
        return self.objective.embed(self.network, views)

    def before_step(self, step: int, steps: int) -> None:
        """Pass the current step to the strategy and to an objective with a schedule."""
        self.relating.progress = step / steps
        if isinstance(self.objective, Scheduled):
            self.objective.before_step(step, steps)

    def announce(self, logged: bool) -> None:
        """Compute the metrics of the next step, or only its loss."""
        self.relating.logged = logged

    def after_step(self) -> None:
        """Update an objective after a change of the network (momentum encoders)."""
        if isinstance(self.objective, FollowsNetwork):
            self.objective.after_step(self.network)


@dataclass(frozen=True)
class Pretraining:
    """All parts of a pretraining, built from its configuration."""

    config: PretrainConfig
    store: Store
    scans: ScanSelection
    strategy: PairStrategy
    anchors: Anchors
    learner: Learner

    def plan(self) -> Plan:
        """The anchors of every step."""
        grouping = batch_grouping_of(self.strategy, self.scans.collection)
        return Plan(self.anchors.ids, self.config.train.samples_per_step, self.config.seed, grouping)

    def dataset(self) -> PairDataset:
        """The samples of this rank, for all steps."""
        train, objective = self.config.train, self.learner.objective
        points = isinstance(objective, ComparesPoints)
        own: object = self.strategy if relates_points(self.strategy) else objective
        return PairDataset(
            store=self.store,
            scans=self.scans,
            strategy=self.strategy,
            recipe=self.learner.recipe,
            plan=self.plan(),
            steps=train.steps,
            rank=rank(),
            world_size=world_size(),
            num_points=num_points_of(own) if points else 0,
            is_placebo=self.config.placebo,
        )


def assemble(config: PretrainConfig, store: Store | None = None) -> Pretraining:
    """Build all parts of a configuration and check that they are compatible.

    ConfigError, DataError otherwise. store: that of the configuration, if it is open already
    """
    store = store or Store.open(config.data.root)
    scans = pretraining_scans(store, config.data)
    if config.num_patients is not None:
        scans = _fewer_patients(scans, config.num_patients, config.seed)
    with inside("pairs"):
        strategy: PairStrategy = PAIRS.build(config.pairs)
    if config.placebo:
        scans = ScanSelection(placebo(scans.collection, strategy, config.seed), scans.rows, scans.left_out)
    with inside("pairs", config.pairs.name):
        anchors = strategy.anchors(scans.collection)
    seed_weights(config.seed)
    decoder = objective_type(config.objective.name).decodes
    network = build_network(config.encoder, store.num_channels, decoder=decoder)
    with inside("objective"):
        objective = OBJECTIVES.build(config.objective, network)
    relating = relating_of(strategy, objective, scans)
    learner = Learner(network, objective, VIEWS.build(config.views), relating, config.train.grad_cache)
    parts = Pretraining(config, store, scans, strategy, anchors, learner)
    check_parts(parts)
    return parts


def _fewer_patients(scans: ScanSelection, num: int, seed: int) -> ScanSelection:
    """The scans of `num` patients. ConfigError if there are fewer."""
    patients = sorted(set(scans.collection.table["patient"]))
    if num > len(patients):
        problem = f"the training side has {len(patients)} patients with usable scans"
        raise ConfigError("num_patients", num, problem, f"choose 1 to {len(patients)}")
    return scans.of([patients[i] for i in np.random.default_rng(seed).permutation(len(patients))[:num]])


def relating_of(strategy: PairStrategy, objective: Objective, scans: ScanSelection) -> Relating:
    """The relation of a strategy; gated if the objective compares points and the strategy relates views."""
    relate: Relate = strategy.relate
    constant_across = traits_of(strategy).constant_across
    if isinstance(objective, ComparesPoints) and not relates_points(strategy):
        relate = objective.gate(relate)
        constant_across = constant_across and (*constant_across, "sample", "frame")
    size = max(queue_size(strategy), queue_size_of(objective))
    budget_weight = max(traits_of(part).budget_weight for part in all_parts(strategy))
    if not size:
        return Relating(relate, strategy, constant_across=constant_across, budget_weight=budget_weight)
    any_view = ViewSpec(0, Box((0, 0, 0), scans.collection.patch_size))
    layout = scans.collection.keys([any_view], np.zeros(1), np.zeros(1))
    return Relating(relate, strategy, EmbeddingQueue(size, objective.dim, layout), None, budget_weight)

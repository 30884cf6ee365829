"""`medcl3d pretrain`: train an encoder from a configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic.dataclasses import dataclass as config_dataclass
from safetensors.torch import save as to_safetensors
from torch import nn

from medcl3d.config.choices import choice_of
from medcl3d.config.field_types import STRICT, Seed
from medcl3d.config.loading import load
from medcl3d.config.plain import plain
from medcl3d.core.embeddings import Embedded, Loss
from medcl3d.core.errors import ConfigError
from medcl3d.core.geometry import Box, ViewSpec
from medcl3d.core.relation import Relate
from medcl3d.distributed.collectives import process_group, rank, say, world_size
from medcl3d.distributed.precision import autocast_dtype, computes_in
from medcl3d.distributed.seeding import seed_weights
from medcl3d.encoders import ENCODERS
from medcl3d.encoders.cost import forward_flops
from medcl3d.encoders.network import Network, build_network, check_patch_size
from medcl3d.io.atomic import replacing, write_json
from medcl3d.io.disk_space import refuse_unwritable
from medcl3d.objectives import OBJECTIVES
from medcl3d.objectives.relating import Relating, Support
from medcl3d.pairs import PAIRS, PairStrategy, learns_through_weights, queue_size, relates_points
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.batch_grouping import Companions, companions_of
from medcl3d.pairs.placebo import placebo
from medcl3d.pretraining.compatibility import check_not_alone, check_together, check_uses, shapes_of_roles, without_effect
from medcl3d.pretraining.embedding_export import portray
from medcl3d.pretraining.online_probe import Asked, OnlineProbe
from medcl3d.pretraining.pair_measures import facts_of
from medcl3d.pretraining.pictures import picture_of_pairs, picture_of_relation
from medcl3d.sampling.augment import make_views
from medcl3d.sampling.batches import batches_from
from medcl3d.sampling.pair_dataset import PairDataset
from medcl3d.sampling.plan import Plan
from medcl3d.sampling.raw_batch import RawBatch
from medcl3d.store.content_hashes import contents
from medcl3d.store.fingerprints import fingerprints
from medcl3d.store.scan_selection import DataConfig, ScansInUse, pretraining_scans
from medcl3d.store.store import Store
from medcl3d.training.grad_cache import embed_in_chunks, refuse_batch_statistics
from medcl3d.training.loop import FitOptions, check_ranks, fit, short_of_warmup
from medcl3d.training.run_folder import RunFolder, run_folder, versions
from medcl3d.views import VIEWS

SCHEMA = 1


@config_dataclass(frozen=True, kw_only=True, config=STRICT)
class PretrainConfig:
    """Configuration of a pretraining: scans, pairs, views, network, objective, training.

    loader   `store` reads crops from memory maps, `torchio` uses a `tio.Queue`; the samples are the same, but
             `torchio` is slower, since it reads whole scans
    placebo  control: permute the signal columns of the strategy among scans
    probe    linear probe on labels of training patients, evaluated and logged periodically; does not affect
             training
    """

    data: DataConfig
    pairs: choice_of(PAIRS)  # type: ignore[valid-type]
    views: choice_of(VIEWS)  # type: ignore[valid-type]
    encoder: choice_of(ENCODERS)  # type: ignore[valid-type]
    objective: choice_of(OBJECTIVES)  # type: ignore[valid-type]
    train: FitOptions
    out_dir: Path
    seed: Seed = 0
    loader: Literal["store", "torchio"] = "store"
    placebo: bool = False
    probe: OnlineProbe | None = None


class Learner(nn.Module):
    """Network and objective in one module; a call computes the loss of a step.

    grad_cache  samples embedded at a time (0: all at once)
    """

    def __init__(self, network: Network, objective: Any, recipe: Any, relating: Relating, grad_cache: int = 0):
        super().__init__()
        self.network, self.objective, self.relating = network, objective, relating
        self.recipe, self.grad_cache = recipe, grad_cache

    def forward(self, raw: RawBatch) -> Loss:
        """The loss of this rank's part of a global batch."""
        embedded = embed_in_chunks(self.embed, raw, self.grad_cache) if self.grad_cache else self.embed(raw)
        loss: Loss = self.objective.loss(embedded, self.relating)
        return loss

    def embed(self, raw: RawBatch) -> Embedded:
        """Embeddings of the views of some samples, with their keys."""
        embedded: Embedded = self.objective.embed(self.network, make_views(raw, self.recipe))
        return embedded

    def before_step(self, step: int, steps: int) -> None:
        """Pass the current step to an objective with a schedule."""
        if hasattr(self.objective, "before_step"):
            self.objective.before_step(step, steps)

    def after_step(self) -> None:
        """Update an objective after a change of the network (momentum encoders)."""
        if hasattr(self.objective, "after_step"):
            self.objective.after_step(self.network)


@dataclass(frozen=True)
class Pretraining:
    """All parts of a pretraining, built from its configuration."""

    config: PretrainConfig
    store: Store
    scans: ScansInUse
    strategy: PairStrategy
    anchors: Anchors
    learner: Learner

    def dataset(self) -> PairDataset:
        """The samples of this rank, for all steps."""
        train, objective = self.config.train, self.learner.objective
        points = hasattr(objective, "gate")
        own = self.strategy if relates_points(self.strategy) else objective
        return PairDataset(
            store=self.store,
            scans=self.scans,
            strategy=self.strategy,
            recipe=self.learner.recipe,
            plan=Plan(self.anchors.ids, train.samples_per_step, self.config.seed, companions_of(self.strategy, self.scans.collection)),
            steps=train.steps,
            rank=rank(),
            world_size=world_size(),
            num_points=own.num_points if points else 0,  # type: ignore[union-attr, arg-type]
            is_placebo=self.config.placebo,
        )


def assemble(config: PretrainConfig) -> Pretraining:
    """Build all parts of a configuration and check that they are compatible.

    ConfigError, DataError otherwise.
    """
    check_ranks(config.train)
    store = Store.open(config.data.root)
    scans = pretraining_scans(store, config.data)
    strategy: PairStrategy = PAIRS.build(config.pairs)
    if config.placebo:
        scans = ScansInUse(placebo(scans.collection, strategy, config.seed), scans.rows, scans.left_out)
    if config.loader == "torchio":
        from medcl3d.sampling.torchio_sampler import refuse_across_patients

        refuse_across_patients(strategy)
    anchors = strategy.anchors(scans.collection)
    check_together(config, companions_of(strategy, scans.collection))
    check_not_alone(config)
    seed_weights(config.seed)
    constructor = OBJECTIVES.get(config.objective.name)
    network = build_network(config.encoder, store.num_channels, decoder=constructor.decodes)  # type: ignore[attr-defined]
    objective = OBJECTIVES.build(config.objective, network)
    check_uses(config, strategy, objective)
    if chunk := config.train.grad_cache:
        refuse_batch_statistics(chunk, config.encoder.name, network, config.objective.name, objective)
    for role, shape in shapes_of_roles(strategy, scans.collection, anchors).items():
        check_patch_size(network, shape, "data.patch_size" if role == "global" else f"pairs.{config.pairs.name}: the size of {role} views")
    return Pretraining(
        config,
        store,
        scans,
        strategy,
        anchors,
        Learner(network, objective, VIEWS.build(config.views), relating_of(strategy, objective, scans), chunk),
    )


def relating_of(strategy: PairStrategy, objective: Any, scans: ScansInUse) -> Relating:
    """The relation of a strategy; gated if the objective compares points and the strategy relates views."""
    relate: Relate = strategy.relate
    constant_across = getattr(strategy, "constant_across", None)
    if hasattr(objective, "gate") and not relates_points(strategy):
        if learns_through_weights(strategy):
            raise ConfigError(
                "pairs: detach_weights = false: the strategy relates crops, and the objective compares points; "
                "set detach_weights to true, or choose an inner strategy that relates points"
            )
        relate = objective.gate(relate)
        constant_across = constant_across and (*constant_across, "sample", "frame")
    size = max(queue_size(strategy), getattr(objective, "queue_size", 0))
    if not size:
        return Relating(relate, strategy, constant_across=constant_across)
    any_view = ViewSpec(0, Box((0, 0, 0), scans.collection.patch_size))
    layout = scans.collection.keys([any_view], np.zeros(1), np.zeros(1))
    return Relating(relate, strategy, Support(size, objective.dim, layout))


def pretrain(config_path: Path, overrides: Sequence[str] = (), check: bool = False) -> Path:
    """Pretrain an encoder and return the run folder.

    Resumes a run that was stopped; does nothing if it is done.
    """
    config = load(config_path, overrides, PretrainConfig)
    with process_group() as device:
        parts = assemble(config)
        say(summary(parts))
        asked = Asked(config.probe, parts.store, config.data, config.train.log_every) if config.probe else None
        if check:
            refuse_unwritable(config.out_dir, "out_dir")
            return config.out_dir
        provenance = {**fingerprints(parts.store), "kind": "pretrain", "precision": computes_in(config.train.precision, device)}
        with run_folder(config.out_dir, plain(config), provenance, model=PretrainConfig) as run:
            if run.finished:
                say(f"{config.out_dir}: this pretraining is done; remove the folder to repeat it")
                return config.out_dir
            dataset, train = parts.dataset(), config.train
            if rank() == 0 and not (run.path / "pictures" / "pairs.png").exists():
                first, recipe = dataset[0], parts.learner.recipe
                run.picture("pairs", picture_of_pairs(parts.store, parts.scans, first, recipe))
                run.picture("relation", picture_of_relation(facts_of(first, parts.learner.relating, recipe)))

            def loss_of(model: nn.Module, raw: RawBatch) -> Loss:
                loss: Loss = model(raw.to(device))
                return loss

            def watch(step: int) -> dict[str, float]:
                if asked is None or step % asked.every:
                    return {}
                return asked.answer(parts.learner.network, device, autocast_dtype(train.precision, device))

            fit(
                parts.learner,
                loss_of,
                lambda step: batches(config, dataset, step),
                train,
                run,
                device,
                "pretraining",
                before_step=parts.learner.before_step,
                after_step=parts.learner.after_step,
                watch=watch,
            )
            finish(parts, run, device)
        say(f"{config.out_dir / 'encoder.safetensors'}")
    return config.out_dir


def batches(config: PretrainConfig, dataset: PairDataset, start: int) -> Iterator[RawBatch]:
    """The batches of this rank from step `start` on, from the configured loader."""
    if config.loader == "store":
        return batches_from(dataset, config.train.steps, config.train.workers, start)
    from medcl3d.sampling.torchio_queue import torchio_batches

    return torchio_batches(dataset, config.train.workers, start)


def summary(parts: Pretraining) -> str:
    """Summary of a pretraining in a few lines: scans, anchors, network."""
    config, learner = parts.config, parts.learner
    left = [*parts.scans.left_out.items(), *parts.anchors.left_out.items()]
    count = {name: sum(p.numel() for p in module.parameters()) for name, module in learner.named_children()}
    pairs = f"{config.pairs.name} (placebo)" if config.placebo else config.pairs.name
    patients = parts.scans.collection.table["patient"].nunique()
    flops = forward_flops(learner.network, parts.store.num_channels, config.data.patch_size)
    return "\n".join(
        [
            f"{pairs} with {config.objective.name}: {len(parts.anchors.ids)} anchors in "
            f"{len(parts.scans.collection)} scans of {patients} patients",
            *(f"  left out: {number} scans, {reason}" for reason, number in left),
            *(f"  {note}" for note in parts.anchors.notes),
            *few_anchors(config, parts.anchors, companions_of(parts.strategy, parts.scans.collection)),
            *(
                f"  {line}"
                for line in without_effect(
                    config, parts.strategy, learner.objective, parts.scans.collection, parts.anchors
                )
            ),
            *short_of_warmup(config.train),
            *(f"  {note}" for note in objective_notes(learner.objective, config.train.steps)),
            f"  {config.encoder.name}: {count['network'] / 1e6:.2f} million parameters, objective {count['objective'] / 1e6:.2f} million",
            f"  {flops / 1e9:.2f} GFLOP per crop of {' x '.join(map(str, config.data.patch_size))}, one "
            "forward pass",
        ]
    )


def objective_notes(objective: Any, steps: int) -> list[str]:
    """Notes of an objective on a training of `steps` steps."""
    return list(objective.notes(steps)) if hasattr(objective, "notes") else []


def few_anchors(config: PretrainConfig, anchors: Anchors, companions: Companions | None) -> list[str]:
    """A note if a batch visits anchors more often than requested."""
    samples, num = config.train.samples_per_step, len(anchors.ids)
    visits = 1 if companions is None else companions.samples_per_scan
    if samples <= num * visits:
        return []
    times = "once" if visits == 1 else f"{visits} times (samples_per_scan)"
    return [f"  {samples} samples per step, but {num} anchors: each is visited more than {times} in a batch"]


def finish(parts: Pretraining, run: RunFolder, device: torch.device) -> None:
    """Write the encoder and the embedding export, and mark the run as done."""
    if rank() == 0:
        network = parts.learner.network
        weights = {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}
        with replacing(run.path / "encoder.safetensors") as file:
            file.write(to_safetensors(weights, metadata={"format": "pt"}))
        write_json(run.path / "encoder.json", sidecar(parts))
        portray(parts, run, device)
    run.status("done", parts.config.train.steps)


def sidecar(parts: Pretraining) -> dict[str, Any]:
    """The metadata needed to use the weights (encoder.json)."""
    config, collection = parts.config, parts.scans.collection
    return {
        "schema": SCHEMA,
        "architecture": plain(config.encoder),
        "in_channels": parts.store.num_channels,
        "decoder": parts.learner.network.decoder is not None,
        "axes": "RAS",
        "spacing_mm": [float(value) for value in torch.from_numpy(collection.spacings).median(0).values],
        "patch_size": list(config.data.patch_size),
        "intensity": parts.store.intensity(),
        "pretraining": {"pairs": plain(config.pairs), "objective": plain(config.objective), "placebo": config.placebo, "seed": config.seed},
        "pretraining_patients": sorted(collection.table["patient"].unique().tolist()),
        "provenance": {"data": parts.store.fingerprint(), **versions()},
        # Last, since it is long: one line per scan.
        "pretraining_content": contents(parts.store.scans[row] for row in parts.scans.rows),
    }

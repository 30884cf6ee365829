"""The summary that a pretraining prints before it runs."""

from __future__ import annotations

import torch

from medcl3d.distributed.collectives import world_size
from medcl3d.distributed.precision import autocast_dtype, precision_used
from medcl3d.encoders.memory import activation_bytes
from medcl3d.encoders.network import forward_flops
from medcl3d.encoders.recompute import recompute_blocks
from medcl3d.objectives import HasNotes
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.batch_grouping import BatchGrouping, batch_grouping_of
from medcl3d.pretraining.compatibility import fields_without_effect
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.crop_content import crop_notes
from medcl3d.pretraining.parts import Pretraining
from medcl3d.training.options import warmup_warning


def summary(parts: Pretraining) -> str:
    """Summary of a pretraining in a few lines: scans, anchors, network."""
    config, learner = parts.config, parts.learner
    left = [*parts.scans.left_out.items(), *parts.anchors.left_out.items()]
    count = {name: sum(p.numel() for p in module.parameters()) for name, module in learner.named_children()}
    pairs = f"{config.pairs.name} (placebo)" if config.placebo else config.pairs.name
    patients = parts.scans.collection.table["patient"].nunique()
    notes = learner.objective.notes(config.train.steps) if isinstance(learner.objective, HasNotes) else ()
    flops = forward_flops(learner.network, parts.store.num_channels, config.data.patch_size)
    return "\n".join(
        [
            f"{pairs} with {config.objective.name}: {len(parts.anchors.ids)} anchors in "
            f"{len(parts.scans.collection)} scans of {patients} patients",
            *(f"  left out: {number} scans, {reason}" for reason, number in left),
            *(f"  {note}" for note in parts.anchors.notes),
            *few_anchors(config, parts.anchors, batch_grouping_of(parts.strategy, parts.scans.collection)),
            *(f"  {note}" for note in crop_notes(parts)),
            *(f"  {line}" for line in fields_without_effect(parts)),
            *warmup_warning(config.train),
            *(f"  {note}" for note in notes),
            f"  {config.encoder.name}: {count['network'] / 1e6:.2f} million parameters, objective "
            f"{count['objective'] / 1e6:.2f} million",
            f"  {flops / 1e9:.2f} GFLOP per crop of {' x '.join(map(str, config.data.patch_size))}, one "
            "forward pass",
        ]
    )


def memory_estimate(parts: Pretraining, device: torch.device) -> str:
    """A line with the memory of one rank's step."""
    train = parts.config.train
    total, activations = estimated_bytes(parts, device)
    samples = train.samples_per_step // world_size()
    return (
        f"  memory: about {binary_size(total)} per process for {samples} samples per step (estimated; "
        f"{binary_size(activations)} of it for activations in {precision_used(train.precision, device)})"
    )


def estimated_bytes(parts: Pretraining, device: torch.device) -> tuple[int, int]:
    """Memory of one rank's step: weights, gradients, optimizer and stored activations; activations alone.

    Transient buffers are not included. With `train.checkpointing` it changes the network: its blocks
    recompute their activations.
    """
    train, learner, raw = parts.config.train, parts.learner, parts.dataset()[0]
    if train.checkpointing:
        recompute_blocks(learner.network)
    dtype = autocast_dtype(train.precision, device)
    samples = train.samples_per_step // world_size()
    activations = sum(
        len(group.crops)
        * activation_bytes(learner.network, group.crops.shape[1], group.crops.shape[2:], dtype)
        for group in raw.groups
    ) * (min(train.grad_cache or samples, samples) / samples)
    states = {"adamw": 2, "sgd": 1, "lars": 1}[train.optimizer]  # float32 averages per weight
    weights = sum(p.numel() * (4 * (2 + states) if p.requires_grad else 4) for p in learner.parameters())
    return int(activations + weights), int(activations)


def binary_size(num_bytes: float) -> str:
    """Bytes in MiB or GiB, as drivers report the memory of GPUs."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"


def few_anchors(config: PretrainConfig, anchors: Anchors, batch_grouping: BatchGrouping | None) -> list[str]:
    """A note if a batch visits anchors more often than requested."""
    samples, num = config.train.samples_per_step, len(anchors.ids)
    visits = 1 if batch_grouping is None else batch_grouping.samples_per_scan
    if samples <= num * visits:
        return []
    times = "once" if visits == 1 else f"{visits} times (samples_per_scan)"
    return [f"  {samples} samples per step, but {num} anchors: each is visited more than {times} in a batch"]

"""Steps of training on the pretended device, for any objective, strategy and encoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from medcl3d.config.loading import parse
from medcl3d.downstream import finetune
from medcl3d.downstream.finetune import Finetuning
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.parts import Pretraining, assemble
from medcl3d.training import loop
from tests.pretend.device import DEVICE, Event, Record, pretended_device

PATCH = (16, 16, 16)
OBJECTIVES: dict[str, dict[str, Any]] = {
    "moco": {"queue_size": 8},
    "swav": {"num_prototypes": 8},
    "dino": {"num_prototypes": 16},
    "dense": {"num_points": 4},
    "global_dense": {"num_points": 4},
    "distance_regression": {"num_points": 4},
    "mae": {"block": [8, 8, 8]},
    "mae_contrastive": {"block": [8, 8, 8]},
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "sum": {"parts": ["overlapping_crops", "augmented_views"]},
    "product": {"parts": ["overlapping_crops", "augmented_views"]},
    "exclude": {"inner": "overlapping_crops"},
    "multi_crop": {"local_size": [8, 8, 8], "num_local": 2},
    "metadata_kernel": {"columns": {"age": 10.0, "sex": "equal"}},
    "composed_kernels": {"columns": {"age": 10.0}, "site": "sex"},
    "region_points": {"regions": "labels"},
    "tabular_neighbours": {"columns": {"age": 10.0, "sex": "equal"}, "k": 1},
    "class_labels": {"group_size": 1},
    "nearest_neighbours": {"queue_size": 8},
}
ENCODERS: dict[str, dict[str, Any]] = {
    "unet3d": {"channels": [4, 8], "strides": [1, 2]},
    "resnet3d": {"depth": 10, "width": 0.0625, "stem_kernel": 3, "stem_stride": 1, "max_pool": False},
    "swin3d": {
        "patch": [1, 1, 1],
        "feature_size": 6,
        "num_layers": [1, 1, 1, 1],
        "num_heads": [1, 1, 1, 1],
        "window_size": [2, 2, 2],
    },
    "vit3d": {"patch": [4, 4, 4], "hidden_size": 12, "num_layers": 1, "num_heads": 2},
    "whole_unet3d": {"width": 4, "num_downs": 1, "out_channels": 4},
    "module": {
        "path": "torch.nn:Conv3d",
        "arguments": {"in_channels": 1, "out_channels": 6, "kernel_size": 2, "stride": 2},
        "channels": [6],
        "strides": [2],
    },
}


class NoRun:
    """A run folder that keeps the logged rows, and writes nothing."""

    path = checkpoints = Path("/nonexistent")

    def __init__(self) -> None:
        self.rows: list[Mapping[str, float]] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.rows.append({"step": step, **metrics})

    def __getattr__(self, name: str) -> Any:
        return lambda *_args, **_kwargs: None


def pretraining_steps(
    store: Path,
    objective: str = "simclr",
    strategy: str = "overlapping_crops",
    encoder: str = "unet3d",
    steps: int = 4,
    **train: Any,
) -> tuple[Record, list[Mapping[str, float]]]:
    """Pretrain for some steps on the device: the events of each step, and the logged rows."""
    parts = parts_of(store, objective, strategy, encoder, steps, **train)
    with pretended_device() as record:
        rows = steps_of(parts, DEVICE, record.next_step)
    return record, rows


def parts_of(
    store: Path,
    objective: str,
    strategy: str = "overlapping_crops",
    encoder: str = "unet3d",
    steps: int = 4,
    **train: Any,
) -> Pretraining:
    """The parts of a small pretraining of this rank."""
    config = parse(
        {
            "data": {"root": str(store), "patch_size": list(PATCH), "smaller_than_patch": "pad"},
            "pairs": {strategy: STRATEGIES.get(strategy, {})},
            "views": {"mri": {"flip_probability": [0, 0.5, 0.5]}},
            "encoder": {encoder: ENCODERS[encoder]},
            "objective": {objective: OBJECTIVES.get(objective, {})},
            "train": {"steps": steps, "samples_per_step": 4, "log_every": 1000, **train},
            "out_dir": "unused",
        },
        PretrainConfig,
        "steps",
    )
    return assemble(config)


def steps_of(
    parts: Pretraining, device: torch.device, next_step: Callable[[], None]
) -> list[Mapping[str, float]]:
    """Pretrain without checkpoints: the logged rows. The last step is logged.

    next_step: called before the batch of each step
    """
    run, dataset = NoRun(), parts.dataset()

    def batches(start: int) -> Iterator[Any]:
        for step in range(start, len(dataset)):
            next_step()
            raw = dataset[step]
            yield raw.pin_memory() if device == DEVICE else raw

    learner = parts.learner
    fit_on_device(
        learner,
        lambda model, raw: model(raw.to(device)),
        batches,
        parts.config.train,
        run,
        device,
        before_step=learner.before_step,
        announce=learner.announce,
        after_step=learner.after_step,
    )
    return run.rows


def fit_on_device(
    model: torch.nn.Module,
    loss_of: Any,
    batches: Any,
    options: Any,
    run: Any,
    device: torch.device = DEVICE,
    **more: Any,
) -> None:
    """`fit` on a device, without checkpoints."""
    model.train()
    with (
        mock.patch.object(loop, "save_checkpoint", lambda *_: None),
        mock.patch.object(loop, "restore", lambda *_: 0),
        mock.patch.object(loop, "autocast_dtype", lambda *_: None),
    ):
        loop.fit(model, loss_of, batches, options, run, device, **more)


def by_kind(events: Counter[Event]) -> Counter[str]:
    """The number of events of each kind."""
    total: Counter[str] = Counter()
    for (kind, _), number in events.items():
        total[kind] += number
    return total


def finetuning_steps(
    store: Path, task: str, steps: int = 4
) -> tuple[Record, list[Mapping[str, float]], Finetuning]:
    """Fine-tune for some steps on the device: the events of each step, the logged rows, and the parts."""
    config = parse(
        {
            "data": {"root": str(store), "patch_size": list(PATCH), "smaller_than_patch": "pad"},
            "task": {task: {}},
            "encoder": {"unet3d": ENCODERS["unet3d"]},
            "train": {"steps": steps, "samples_per_step": 4, "log_every": 1000},
            "out_dir": "unused",
        },
        finetune.FinetuneConfig,
        "steps",
    )
    parts, run = finetune.assemble(config), NoRun()

    def fit_here(model: Any, loss_of: Any, batches: Any, *more: Any, **_: Any) -> None:
        def recorded(start: int) -> Iterator[Any]:
            for batch in batches(start):
                record.next_step()
                yield batch.pin_memory()

        fit_on_device(model, loss_of, recorded, config.train, run)

    with pretended_device() as record, mock.patch.object(finetune, "fit", fit_here):
        finetune.train_model(parts, run, DEVICE)  # type: ignore[arg-type]
    return record, run.rows, parts

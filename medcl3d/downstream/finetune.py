"""`medcl3d finetune`: train a network on labelled patients and evaluate it on test patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic.dataclasses import dataclass
from torch import nn

from medcl3d.config.choices import choice_of
from medcl3d.config.field_types import STRICT, Choice, PositiveInt, Seed
from medcl3d.config.loading import load
from medcl3d.config.plain import plain
from medcl3d.core.embeddings import Loss
from medcl3d.core.errors import ConfigError
from medcl3d.distributed.collectives import buffers_of_rank_zero, process_group, rank, say, world_size
from medcl3d.distributed.precision import autocast_dtype
from medcl3d.distributed.seeding import seed_weights
from medcl3d.downstream.few_cases import few_training_cases
from medcl3d.downstream.label_selection import labelled_scans, scans_to_test
from medcl3d.downstream.results import SCHEMA, finish, record_init
from medcl3d.downstream.run_weights import SCRATCH, Init, after_step, source_of
from medcl3d.downstream.task import Task
from medcl3d.downstream.tasks import TASKS, task_of
from medcl3d.downstream.transfer import Transfer, Transferred, load_weights, start_of
from medcl3d.downstream.unlike_pretraining import median_spacing, unlike_pretraining
from medcl3d.encoders import ENCODERS
from medcl3d.encoders.network import Network, build_network, check_patch_size
from medcl3d.io.disk_space import require_writable
from medcl3d.sampling.batches import batches_from
from medcl3d.sampling.plan import Plan
from medcl3d.store.scan_selection import DataConfig, ScanSelection, split_of
from medcl3d.store.splits import Measured
from medcl3d.store.store import Store
from medcl3d.training.loop import fit
from medcl3d.training.options import FitOptions, check_options, warmup_warning
from medcl3d.training.run_folder import RunFolder, run_of
from medcl3d.training.run_record import versions
from medcl3d.views import VIEWS, ViewRecipe

NO_MIRRORING = Choice("mri", {"flip_probability": (0.0, 0.0, 0.0)})


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FinetuneConfig:
    """Configuration of a fine-tuning: scans, task, initial weights, labelled patients, training.

    data          the scans and the patch size
    task          what is predicted from which labels
    encoder       the network, as in the pretraining
    train         steps, samples per step, optimiser
    out_dir       the run folder
    init          scratch, the run folder of a pretraining, RUN@STEP (after a step of `train.keep_steps`), or
                  its encoder.safetensors; or weights of another project, as `{weights: FILE, layout: NAME,
                  saw: unknown}`
    step          the same step as its own field, so that a comparison can vary it; no effect on scratch
    freeze        encoder: only the decoder and the head are trained
    transfer      what to load: the encoder, or all (with the decoder); ignored for scratch
    num_labelled  number of training patients whose labels are used (default: all); for one seed, fewer
                  patients are a subset of more
    views         augmentation of patches (default: `mri` without mirroring, since scans are in RAS order and
                  position largely distinguishes a structure from its neighbours)
    measured_on   test patients, or validation patients while choices are still made
    validate_every  steps after which the validation patients are measured, for a curve of `validation/` in
                  metrics.jsonl and trackers; a multiple of `train.log_every`
    seed          seed of weights that are not loaded, the draw of labelled patients, the patches, the
                  bootstrap
    """

    data: DataConfig
    task: choice_of(TASKS)  # type: ignore[valid-type]
    encoder: choice_of(ENCODERS)  # type: ignore[valid-type]
    train: FitOptions
    out_dir: Path
    init: Init = SCRATCH
    step: PositiveInt | None = None
    transfer: Transfer = "encoder"
    freeze: Literal["encoder"] | None = None
    num_labelled: PositiveInt | None = None
    views: choice_of(VIEWS) = NO_MIRRORING  # type: ignore[valid-type]
    measured_on: Measured = "test"
    validate_every: PositiveInt | None = None
    seed: Seed = 0

    @property
    def source(self) -> Init:
        """`init`, with the step."""
        return after_step(self.init, self.step)


@plain_dataclass(frozen=True)
class Finetuning:
    """All parts of a fine-tuning, built from its configuration.

    train, test  scans of the store
    validation   scans that are measured during training; () if none are
    labelled     patients whose labels are used
    start        hash of the weights to start from; None if the seed determines them
    """

    config: FinetuneConfig
    store: Store
    task: Task
    model: nn.Module
    recipe: ViewRecipe
    train: ScanSelection
    test: ScanSelection
    validation: tuple[int, ...]
    labelled: tuple[str, ...]
    transferred: Transferred | None
    start: str | None


def assemble(config: FinetuneConfig) -> Finetuning:
    """Build all parts of a configuration and check that they are compatible.

    ConfigError, DataError otherwise.
    """
    check_options(config.train)
    if config.train.grad_cache:
        raise ConfigError(
            "train.grad_cache", config.train.grad_cache, "fine-tuning has no negatives", "set it to 0"
        )
    if config.train.keep_steps:
        raise ConfigError(
            f"train.keep_steps = {list(config.train.keep_steps)}: only a pretraining keeps encoders of "
            "single steps; leave it out"
        )
    store = Store.open(config.data.root)
    task = task_of(config.task)
    split = split_of(store, config.data).measured_on(config.measured_on)
    train, labelled = labelled_scans(
        store, config.data, task, split, config.task.name, config.num_labelled, config.seed
    )
    test = scans_to_test(store, config.data, task, split, config.task.name)
    seed_weights(config.seed)
    network = build_network(config.encoder, store.num_channels, decoder=task.decodes)
    check_patch_size(network, config.data.patch_size)
    model = task.model(network, store)
    transferred = (
        None
        if config.init == SCRATCH
        else load_weights(network, source_of(config.source), config.transfer, split.held_out, store)
    )
    if config.freeze:
        network.encoder.requires_grad_(False)
    return Finetuning(
        config,
        store,
        task,
        model,
        VIEWS.build(config.views),
        train,
        test,
        scans_to_validate(config, store, task),
        labelled,
        transferred,
        start_of(network, transferred),
    )


def scans_to_validate(config: FinetuneConfig, store: Store, task: Task) -> tuple[int, ...]:
    """The scans of validation patients that are measured during training. ConfigError if there are none."""
    every = config.validate_every
    if every is None:
        return ()
    if every % config.train.log_every:
        problem = f"is not a multiple of train.log_every = {config.train.log_every}"
        raise ConfigError("validate_every", every, problem, "change one of them", colon=False)
    split = split_of(store, config.data)
    if not split.validation:
        problem, remedy = (
            "the split has no validation patients",
            "prepare the scans with validation_fraction=0.2",
        )
        raise ConfigError("validate_every", every, problem, remedy)
    validation = split.measured_on("validation")
    scans = scans_to_test(store, config.data, task, validation, config.task.name)
    return tuple(int(scan) for scan in scans.rows)


def finetune(config_path: Path, overrides: Sequence[str] = (), check: bool = False) -> Path:
    """Fine-tune, evaluate and return the run folder.

    Resumes a run that was stopped; does nothing if it is done.
    """
    config = load(config_path, overrides, FinetuneConfig)
    with process_group(config.train.timeout_s) as device:
        parts = assemble(config)
        say(summary(parts))
        if check:
            require_writable(config.out_dir, "out_dir")
            weights = "" if parts.transferred is None else " weights of init,"
            say(f"dry run: data, labels, network,{weights} task and out_dir are valid; none was trained")
            return config.out_dir
        precision = config.train.precision
        with run_of(config, config.out_dir, parts.store, "finetune", precision, device, parts.start) as run:
            if run is not None:
                record_init(run, parts.transferred, parts.store)
                train_model(parts, run, device)
                measure(parts, run, device)
    return config.out_dir


def train_model(parts: Finetuning, run: RunFolder, device: torch.device) -> None:
    """Train on the labelled patients, from the run's last checkpoint if it has one."""
    config, train = parts.config, parts.config.train
    plan = Plan(np.asarray(parts.train.rows, dtype=np.int64), train.samples_per_step, config.seed)
    dataset = parts.task.dataset(
        parts.store, plan, config.data.patch_size, parts.recipe, train.steps, rank(), world_size()
    )

    def loss_of(model: nn.Module, batch: Any) -> Loss:
        return parts.task.loss(model, batch.to(device), parts.recipe)

    parts.model.train()
    if config.freeze:
        for module in parts.model.modules():
            if isinstance(module, Network):
                module.encoder.eval()  # statistics of batch norm stay too
    fit(
        parts.model,
        loss_of,
        lambda step: batches_from(dataset, train.steps, train.workers, step),
        train,
        run,
        device,
        "fine-tuning",
        watch=lambda step: validate(parts, device, step),
    )


def validate(parts: Finetuning, device: torch.device, step: int) -> dict[str, float]:
    """Metrics of the validation patients, if they are due after this step."""
    config = parts.config
    if config.validate_every is None or step % config.validate_every:
        return {}
    modes = {module: module.training for module in parts.model.modules()}
    buffers_of_rank_zero(parts.model)  # all ranks evaluate a part of the scans
    dtype = autocast_dtype(config.train.precision, device)
    found = parts.task.evaluate(
        parts.model, parts.store, parts.validation, config.data.patch_size, device, dtype, config.seed
    )
    for module, mode in modes.items():
        module.training = mode
    return {f"validation/{name}": interval.mean for name, interval in found.metrics.items()}


def measure(parts: Finetuning, run: RunFolder, device: torch.device) -> None:
    """Evaluate the model on test patients; write weights, pictures and results, and mark the run as done.

    All ranks evaluate a part of the scans, and rank 0 writes.
    """
    config = parts.config
    scans = [int(scan) for scan in parts.test.rows]
    say(
        f"evaluating on {len(scans)} scans of {parts.test.collection.table['patient'].nunique()} test "
        "patients"
    )
    dtype = autocast_dtype(config.train.precision, device)
    buffers_of_rank_zero(parts.model)
    found = parts.task.evaluate(
        parts.model, parts.store, scans, config.data.patch_size, device, dtype, config.seed
    )
    if rank() != 0:
        return
    found = replace(
        found, few=few_training_cases(parts.task, parts.store, [int(scan) for scan in parts.train.rows])
    )
    for name, image in found.pictures.items():
        run.picture(name, image, config.train.steps)
    run.weights("model", parts.model, sidecar(parts))
    test = sorted(parts.test.collection.table["patient"].unique().tolist())
    finish(run, found, {"labelled": list(parts.labelled), "test": test}, config, config.train.steps)


def sidecar(parts: Finetuning) -> dict[str, Any]:
    """The metadata needed to use the weights (model.json)."""
    config, store = parts.config, parts.store
    return {
        "schema": SCHEMA,
        "task": plain(config.task),
        "label_names": {str(value): name for value, name in store.label_names.items()},
        "architecture": plain(config.encoder),
        "in_channels": store.num_channels,
        "axes": "RAS",
        "spacing_mm": median_spacing(store),
        "patch_size": list(config.data.patch_size),
        "precision": config.train.precision,
        "intensity": store.intensity(),
        "init": plain(config.source),
        "pretraining_patients": parts.transferred.sidecar["pretraining_patients"]
        if parts.transferred
        else [],
        "training_patients": list(parts.labelled),
        "provenance": {"data": store.fingerprint(), **versions()},
    }


def summary(parts: Finetuning) -> str:
    """Summary of a fine-tuning: scans, patients, network, origin of its weights."""
    config = parts.config
    train, test, patients = len(parts.train.rows), len(parts.test.rows), len(parts.labelled)
    lines = [f"{config.task.name}: {train} scans of {patients} labelled patients, tested on {test} scans"]
    lines += [
        f"  left out in training: {number} scans, {reason}" for reason, number in parts.train.left_out.items()
    ]
    lines.append(
        f"  {config.encoder.name}: {sum(p.numel() for p in parts.model.parameters()) / 1e6:.2f} million "
        "parameters"
    )
    lines += warmup_warning(config.train)
    if parts.transferred is None:
        start = "scratch" if parts.start is None else "the module from Python"
        return "\n".join([*lines, f"  from {start}"])
    lines += [f"  {note}" for note in parts.transferred.notes]
    warnings = unlike_pretraining(parts.store, parts.transferred.sidecar)
    return "\n".join([*lines, *(f"  warning: {warning}" for warning in warnings)])

"""`medcl3d pretrain`: train an encoder from a configuration."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from medcl3d.config.loading import load
from medcl3d.config.plain import plain
from medcl3d.core.embeddings import Loss
from medcl3d.distributed.collectives import buffers_of_rank_zero, process_group, rank, say
from medcl3d.distributed.precision import autocast_dtype
from medcl3d.encoders.module import ModuleEncoder
from medcl3d.io.atomic import write_json
from medcl3d.io.disk_space import require_writable
from medcl3d.io.progress import duration
from medcl3d.pairs import needs_features
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.embedding_export import export_embeddings
from medcl3d.pretraining.online_probe import ProbedCrops
from medcl3d.pretraining.pair_audit import PAIR_AUDIT, audit_by_structures
from medcl3d.pretraining.parts import Pretraining, assemble
from medcl3d.pretraining.pictures import picture_of_pairs, picture_of_relation
from medcl3d.pretraining.shown_batch import shown_batch
from medcl3d.pretraining.summary import memory_estimate, summary
from medcl3d.sampling.batches import batches_from
from medcl3d.sampling.pair_dataset import PairDataset
from medcl3d.sampling.raw_batch import RawBatch
from medcl3d.store.content_hashes import contents
from medcl3d.training.checkpoint import checksum
from medcl3d.training.loop import fit
from medcl3d.training.options import FitOptions
from medcl3d.training.run_folder import RunFolder, run_of
from medcl3d.training.run_record import versions
from medcl3d.training.time_estimate import TIMED, UNTIMED

SCHEMA = 1


def pretrain(
    config_path: Path, overrides: Sequence[str] = (), check: bool = False, time: bool = False
) -> Path:
    """Pretrain an encoder and return the run folder.

    Resumes a run that was stopped; does nothing if it is done.

    check  validate everything, and train nothing
    time   the same, and train a few steps whose weights are discarded, to report the time of a run
    """
    config = load(config_path, overrides, PretrainConfig)
    with process_group(config.train.timeout_s) as device:
        parts = assemble(config)
        say(summary(parts))
        probe = None
        if config.probe is not None:
            probe = ProbedCrops(config.probe, parts.store, config.data, config.train.log_every)
        if check or time:
            say(memory_estimate(parts, device))
            require_writable(config.out_dir, "out_dir")
            if time:
                say(time_steps(parts, device))
            checked = "data, pairs, one sample, network, objective and out_dir"
            say(f"dry run: {checked} are valid; nothing was written")
            return config.out_dir
        run_pretraining(parts, probe, device)
    return config.out_dir


def run_pretraining(parts: Pretraining, probe: ProbedCrops | None, device: torch.device) -> None:
    """Train the encoder in its run folder, or finish an interrupted run, and write the weights."""
    config, learner, train = parts.config, parts.learner, parts.config.train
    start, encoder = None, learner.network.encoder
    if isinstance(encoder, ModuleEncoder) and encoder.from_python:
        # Shapes, not values: a script that constructs the module again, without a seed, may resume.
        start = checksum({name: tuple(one.shape) for name, one in encoder.state_dict().items()})
    with run_of(config, config.out_dir, parts.store, "pretrain", train.precision, device, start) as run:
        if run is None:
            return
        if rank() == 0 and not (run.path / "pictures" / "pairs.png").exists():
            shown = shown_batch(parts)
            run.picture("pairs", picture_of_pairs(shown, 1))
            run.picture("relation", picture_of_relation(shown.facts))

        def watch(step: int) -> dict[str, float]:
            if probe is None or step % probe.every:
                return {}
            return probe.measure(learner.network, device, autocast_dtype(train.precision, device))

        train_encoder(
            parts,
            train,
            run,
            device,
            watch=watch,
            keep=lambda step: run.weights(f"encoder_{step}", learner.network, sidecar(parts, step)),
        )
        finish(parts, run, device)
    say(f"{config.out_dir / 'encoder.safetensors'}")


def train_encoder(
    parts: Pretraining, options: FitOptions, run: RunFolder, device: torch.device, **hooks: Callable[..., Any]
) -> None:
    """Train the encoder in place. hooks: `watch` and `keep` of `fit`."""
    learner, dataset = parts.learner, parts.dataset()

    def loss_of(model: nn.Module, raw: RawBatch) -> Loss:
        loss: Loss = model(raw.to(device))
        return loss

    fit(
        learner,
        loss_of,
        lambda step: batches(parts.config, dataset, step),
        options,
        run,
        device,
        "pretraining",
        before_step=learner.before_step,
        announce=learner.announce,
        after_step=learner.after_step,
        **hooks,
    )


def time_steps(parts: Pretraining, device: torch.device) -> str:
    """A line with the time of the run on this machine, from real steps in a temporary folder."""
    train = parts.config.train
    steps = UNTIMED + TIMED
    options = replace(
        train, steps=steps, warmup_steps=0, log_every=1, checkpoint_every=steps, keep_steps=(), trackers=()
    )
    with TemporaryDirectory() as folder:
        train_encoder(parts, options, RunFolder(Path(folder), False, trackers=()), device)
        lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines][UNTIMED:]
    seconds = median(train.samples_per_step / row["samples_per_s"] for row in rows)
    waited, memory = median(row["data_wait"] for row in rows), rows[-1]["peak_memory_mb"]
    return (
        f"  time: about {duration(seconds * train.steps)} for {train.steps} steps ({seconds:.2g} s per step, "
        f"{waited:.0%} of it waiting for data; peak memory {memory / 1024:.1f} GiB; median of {TIMED} steps)"
    )


def batches(config: PretrainConfig, dataset: PairDataset, start: int) -> Iterator[RawBatch]:
    """The batches of this rank from step `start` on, from the configured loader."""
    if config.loader == "store":
        return batches_from(dataset, config.train.steps, config.train.workers, start)
    from medcl3d.sampling.torchio_queue import torchio_batches

    return torchio_batches(dataset, config.train.workers, start)


def finish(parts: Pretraining, run: RunFolder, device: torch.device) -> None:
    """Write the encoder, the embedding export and the pair audit, and mark the run as done.

    All ranks compute a part of the export, and rank 0 writes.
    """
    buffers_of_rank_zero(parts.learner.network)
    if rank() == 0:
        run.weights("encoder", parts.learner.network, sidecar(parts, parts.config.train.steps))
    export_embeddings(parts, run, device)
    if rank() == 0:
        export_audit(parts, run)
    run.status("done", parts.config.train.steps)


def export_audit(parts: Pretraining, run: RunFolder) -> None:
    """Write the audit of the pairs to pair_audit.json, if there are pairs and scans with label maps."""
    network = parts.learner.network.cpu() if needs_features(parts.strategy) else None
    audit = None if parts.config.objective.name == "mae" else audit_by_structures(parts, network)
    if audit is not None:
        write_json(run.path / PAIR_AUDIT, audit.as_dict())


def sidecar(parts: Pretraining, step: int) -> dict[str, Any]:
    """The metadata needed to use the weights after `step` (encoder.json)."""
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
        "pretraining": {
            "pairs": plain(config.pairs),
            "objective": plain(config.objective),
            "placebo": config.placebo,
            "seed": config.seed,
        },
        "step": step,
        "pretraining_patients": sorted(collection.table["patient"].unique().tolist()),
        "provenance": {"data": parts.store.fingerprint(), **versions()},
        # Last, since it is long: one line per scan.
        "pretraining_content": contents(parts.store.scans[row] for row in parts.scans.rows),
    }

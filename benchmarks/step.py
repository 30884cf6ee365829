"""Benchmark of a training step, and the fraction of it spent waiting for data."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.measure import PATCH, Bench, Table, by, geometric


def step(bench: Bench) -> Table:
    """A short pretraining with and without a worker: time per step, and its fraction of waiting for data."""
    rows = []
    for workers in (0, 1):
        logged = _pretrain(bench, workers)
        waits = np.array([row["data_wait"] for row in logged])
        rates = np.array([row["samples_per_s"] for row in logged])
        rows.append(
            (
                str(workers),
                geometric(bench.scale.samples_per_step / rates * 1000),
                f"{100 * waits.mean():.1f}%",
            )
        )
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads"
    )
    note = (
        f"`overlapping_crops` with SimCLR and a residual network of depth {bench.scale.depth} on {device}: "
        f"{bench.scale.samples_per_step} samples of two views of {by(PATCH)} voxels per step, wall time. "
        "Views are made on the device and are part of the step, not of the waiting time."
    )
    return Table("A training step", ("workers", "ms per step", "waiting for data"), tuple(rows), note)


def configuration(
    bench: Bench, encoder: dict[str, Any], patch: Sequence[int] = PATCH, **train: Any
) -> dict[str, Any]:
    """A short pretraining of the cohort with SimCLR, without an `out_dir`."""
    steps = {"steps": bench.scale.steps, "samples_per_step": bench.scale.samples_per_step, "workers": 0}
    return {
        "data": {"root": str(bench.store.root), "patch_size": list(patch), "smaller_than_patch": "skip"},
        "pairs": "overlapping_crops",
        "views": "mri",
        "encoder": encoder,
        "objective": "simclr",
        "train": {**steps, **train},
        "seed": 0,
    }


def _pretrain(bench: Bench, workers: int) -> list[dict[str, float]]:
    """The logged rows of a short pretraining, without the first."""
    from medcl3d.pretraining.pretrain import pretrain

    every = max(1, bench.scale.steps // 6)
    run = bench.folder / f"step_{workers}"
    config = configuration(
        bench, {"resnet3d": {"depth": bench.scale.depth}}, workers=workers, log_every=every
    )
    path = bench.folder / f"step_{workers}.yaml"
    path.write_text(json.dumps({**config, "out_dir": str(run)}))  # JSON is YAML
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        pretrain(path)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "data_wait" in row][1:]

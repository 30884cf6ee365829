"""Benchmark of the gradient cache: time and memory of a step in chunks and with the whole batch at once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import PATCH, Bench, Table, by, geometric
from medcl3d.config.loading import parse
from medcl3d.distributed.memory import peak_memory_mb

TURNS = 2  # processes per size, with two steps each


def grad_cache(bench: Bench) -> Table:
    """Forward and backward of one batch, in turns of separate processes."""
    samples = 4 * bench.scale.samples_per_step
    sizes = (0, samples // 2, samples // 4, samples // 8)
    turns = [{size: _measured(bench, samples, size) for size in sizes} for _ in range(TURNS)]
    rows = []
    for size in sizes:
        seconds, whole = (np.array([one[key][0] for one in turns]) for key in (size, 0))
        ratio = "1" if size == 0 else geometric(seconds / whole, ".2f")
        peak = max(one[size][1] for one in turns)
        rows.append((str(size) if size else "all at once", geometric(1000 * seconds), ratio, f"{peak:.0f}"))
    note = (
        f"`overlapping_crops` with SimCLR and a residual network of depth {bench.scale.depth}: {samples} "
        f"samples of two views of {by(PATCH)} voxels, forward and backward, processor time of one core; "
        "memory is the increase over that before the step. Loss and gradient are those of the whole batch "
        "in every row."
    )
    return Table(
        "The gradient cache", ("train.grad_cache", "ms", "relative time", "peak MB"), tuple(rows), note
    )


def _measured(bench: Bench, samples: int, size: int) -> tuple[float, float]:
    """Seconds and MiB, measured in another process."""
    root, store = str(Path(__file__).parents[1]), str(bench.store.root)
    call = f"measure({store!r}, {bench.scale.depth}, {samples}, {size})"
    code = f"import sys; sys.path.insert(0, {root!r}); from benchmarks.chunks import measure; {call}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def measure(store: str, depth: int, samples: int, size: int) -> None:
    """Print seconds (of the faster of two steps) and MiB of a step as JSON."""
    from medcl3d.pretraining.config import PretrainConfig
    from medcl3d.pretraining.parts import assemble

    torch.set_num_threads(1)
    config = {
        "data": {"root": store, "patch_size": list(PATCH), "smaller_than_patch": "skip"},
        "pairs": "overlapping_crops",
        "views": "mri",
        "encoder": {"resnet3d": {"depth": depth}},
        "objective": {
            "simclr": {"norm": "layer"}
        },  # batch statistics of chunks would differ from those of the batch
        "train": {"steps": 1, "samples_per_step": samples, "grad_cache": size},
        "out_dir": "unused",
    }
    parts = assemble(parse(config, PretrainConfig, "benchmark"))
    raw, seconds = parts.dataset()[0], []
    before = peak_memory_mb(torch.device("cpu"))
    for _ in range(2):
        parts.learner.zero_grad()
        start = time.process_time()
        parts.learner(raw).value.backward()
        seconds.append(time.process_time() - start)
    print(json.dumps([min(seconds), peak_memory_mb(torch.device("cpu")) - before]))

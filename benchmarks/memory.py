"""Benchmark of the peak memory of a run, beside a process with network, optimiser and one batch alone."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch

from benchmarks.measure import PATCH, Bench, Table, by, compared, run_child
from benchmarks.plain_loop import ENCODERS, PlainLoop
from benchmarks.step import configuration
from medcl3d.distributed.memory import peak_memory_mb

TITLE = "Peak memory of a run"
COLUMNS = ("encoder", "process", "peak MB", "relative memory")
OURS, LEAST = "medcl3d pretrain", "network, loss, optimiser and one batch"
STEPS = 3  # AdamW keeps its averages from the first step on


def memory(bench: Bench) -> Table:
    """Peak memory of the process of a pretraining, and of one that repeats a step on one batch, in turns."""
    rows: list[tuple[str, ...]] = []
    for number, (name, (encoder, samples)) in enumerate(ENCODERS.items()):
        peaks: dict[str, list[float]] = {OURS: [], LEAST: []}
        for turn in range(bench.scale.starts):
            bench.say(f"memory: {name}, turn {turn + 1} of {bench.scale.starts}")
            peaks[OURS].append(_of_run(bench, encoder, samples, f"{number}_{turn}"))
            peaks[LEAST].append(_of_steps(encoder, samples))
        rows += compared({process: np.array(one) for process, one in peaks.items()}, LEAST, first=[name])
    note = (
        f"The whole process after {STEPS} steps of SimCLR with a residual network on two views of "
        f"{by(PATCH)} voxels per sample, without workers; {bench.scale.starts} turns. The second process "
        "(`benchmarks/plain_loop.py`) imports PyTorch and the network, makes one batch of noise and repeats "
        "the step on it: forward and backward pass, clipping and AdamW. It has no data, views, metrics or "
        "checkpoints."
    )
    return Table(TITLE, COLUMNS, tuple(rows), note)


def _of_run(bench: Bench, encoder: dict[str, Any], samples: int, name: str) -> float:
    """MiB of a pretraining from the command line."""
    config = configuration(
        bench, {"resnet3d": encoder}, steps=STEPS, samples_per_step=samples, log_every=1, warmup_steps=0
    )
    path = bench.folder / f"memory_{name}.yaml"
    path.write_text(json.dumps({**config, "out_dir": str(bench.folder / f"memory_{name}")}))  # JSON is YAML
    call = f"from benchmarks.memory import run; run({str(path)!r})"
    return float(run_child([sys.executable, "-c", call]).splitlines()[-1])


def run(path: str) -> None:
    """Pretrain, checkpoint included, and print the peak memory of this process in MiB."""
    from medcl3d.cli import main

    try:
        main(["pretrain", path])
    except SystemExit as end:
        if end.code:
            raise
    print(peak_memory_mb(torch.device("cpu")))


def _of_steps(encoder: dict[str, Any], samples: int) -> float:
    """MiB of a process that repeats a step on one batch."""
    call = f"from benchmarks.memory import steps; steps({samples}, {encoder!r})"
    return float(run_child([sys.executable, "-c", call]).splitlines()[-1])


def steps(samples: int, encoder: dict[str, Any]) -> None:
    """Make steps on one batch of noise and print the peak memory of this process in MiB."""
    loop, batch = PlainLoop(**encoder), torch.randn(2 * samples, 1, *PATCH)
    for _ in range(STEPS):
        loop.step(batch)
    print(peak_memory_mb(torch.device("cpu")))

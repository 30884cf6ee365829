"""Benchmark of the processor time from a command to the end of its first training step."""

from __future__ import annotations

import json
import resource
import sys

import numpy as np

from benchmarks.measure import PATCH, Bench, Table, geometric, run_child

TITLE = "The first step of a command"
COLUMNS = ("program", "processor seconds", "speed-up of medcl3d")
PLAIN, ALONE = "plain loop", "PyTorch alone"
OPTIMISER = "import torch; torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])"


def startup(bench: Bench) -> Table:
    """One pretraining step from the command line, beside a script of one step of a plain loop."""
    config = {
        "data": {"root": str(bench.store.root), "patch_size": list(PATCH), "smaller_than_patch": "skip"},
        "pairs": "overlapping_crops",
        "views": "mri",
        "encoder": {"resnet3d": {"depth": 18}},
        "objective": "simclr",
        "train": {"steps": 1, "samples_per_step": 4, "warmup_steps": 0},
        "seed": 0,
    }
    path = bench.folder / "startup.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    ours: list[float] = []
    peer: list[float] = []
    alone: list[float] = []
    for turn in range(bench.scale.starts + 1):
        bench.say(f"startup: {f'turn {turn}' if turn else 'warm-up'} of {bench.scale.starts}")
        out = bench.folder / f"startup_{turn}"
        command = [sys.executable, "tools/pretrain.py", str(path), f"out_dir={out}"]
        ours.append(_seconds(command))
        code = "from benchmarks.plain_loop import first_step; first_step()"
        peer.append(_seconds([sys.executable, "-c", code]))
        alone.append(_seconds([sys.executable, "-c", OPTIMISER]))
    times, others = np.array(ours[1:]), np.array(peer[1:])  # the first turn fills the system's cache
    rows = (
        ("medcl3d pretrain", geometric(times, ".2f"), "1"),
        (PLAIN, geometric(others, ".2f"), geometric(others / times, ".2f")),
        (ALONE, geometric(np.array(alone[1:]), ".2f"), "-"),
    )
    note = (
        f"One step of SimCLR with a residual network of depth 18 on 8 views of 32 x 32 x 32 voxels, on one "
        f"core: imports, the step and the end of the process, {bench.scale.starts} turns. medcl3d also "
        "validates the configuration and the store, and writes a run folder with checkpoint, picture and "
        "provenance; the plain loop (`benchmarks/plain_loop.py`) draws its crops from noise and writes "
        "nothing. PyTorch alone: its import, and AdamW of one weight, which imports its compiler."
    )
    return Table(TITLE, COLUMNS, rows, note)


def _seconds(command: list[str]) -> float:
    """Processor time of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run_child(command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

"""Benchmark of steps on GPUs: one, and all of a machine. On a machine without a GPU it is refused."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

from benchmarks.measure import Bench, Table, by
from benchmarks.ranks import pretraining_rows
from benchmarks.step import configuration
from medcl3d.config.field_types import Choice
from medcl3d.core.errors import MachineError
from medcl3d.encoders.network import build_network, forward_flops

TITLE = "Steps on GPUs"
COLUMNS = (
    "ranks", "samples per second", "ms per step", "TFLOP/s per rank", "share of a matrix product",
    "waiting for data", "peak GiB", "efficiency",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """The measured pretraining: its crops, the depth of the network, samples and workers per rank, steps.

    matrix  edge of the matrices whose product is the reference of FLOP/s
    """

    patch: tuple[int, int, int] = (96, 96, 96)
    depth: int = 18
    samples: int = 16
    workers: int = 6
    steps: int = 120
    log_every: int = 20
    matrix: int = 8192


def gpu(bench: Bench) -> Table:
    """Steps on one GPU and on all. MachineError if there is none."""
    if not torch.cuda.is_available():
        raise MachineError(
            problem="benchmark gpu: no GPU is visible to torch",
            remedy="run it on a machine with one; the other benchmarks run without",
        )
    return measured(bench, Run(), sorted({1, torch.cuda.device_count()}), torch.device("cuda"))


def measured(bench: Bench, run: Run, numbers: Sequence[int], device: torch.device) -> Table:
    """Steps of SimCLR on some numbers of ranks of a kind of device, with equal samples for each rank."""
    store = bench.prepared("gpu", shape=[edge + edge // 3 for edge in run.patch])
    encoder = {"resnet3d": {"depth": run.depth}}
    config = configuration(bench, encoder, run.patch, workers=run.workers, log_every=run.log_every)
    config["data"]["root"] = str(store.root)
    network = build_network(Choice("resnet3d", {"depth": run.depth}), store.num_channels, decoder=False)
    step_flops = 3 * forward_flops(network, store.num_channels, run.patch) * 2 * run.samples
    reference, rows = matrix_flops(device, run.matrix), []
    rates: list[float] = []
    for ranks in numbers:
        total = run.samples * ranks
        train = {**config["train"], "steps": run.steps, "samples_per_step": total}
        logged = pretraining_rows(ranks, {**config, "train": train}, bench.folder / "gpu_steps")
        rates.append(median(row["samples_per_s"] for row in logged))
        seconds = total / rates[-1]
        rows.append(
            (
                str(ranks),
                f"{rates[-1]:.1f}",
                f"{1000 * seconds:.1f}",
                f"{step_flops / seconds / 1e12:.3f}",
                f"{100 * step_flops / seconds / reference:.1f}%",
                f"{100 * median(row['data_wait'] for row in logged):.1f}%",
                f"{logged[-1]['peak_memory_mb'] / 1024:.2f}",
                f"{100 * rates[-1] / rates[0] * numbers[0] / ranks:.0f}%",
            )
        )
    note = (
        f"SimCLR with `overlapping_crops`, a residual network of depth {run.depth} and crops of "
        f"{by(run.patch)} voxels, {run.samples} samples of two views and {run.workers} workers per rank, "
        f"{run.steps} steps, precision `auto`; medians of logged rows, rank 0. FLOP: three times those "
        f"counted in the forward pass. Their reference is a product of two matrices of {run.matrix} x "
        f"{run.matrix} in bfloat16 on the same device, {reference / 1e12:.3f} TFLOP/s here. Efficiency: "
        "samples per second and rank, over those of one rank."
    )
    return Table(TITLE, COLUMNS, tuple(rows), note)


def matrix_flops(device: torch.device, edge: int, repeats: int = 10) -> float:
    """FLOP per second of products of two square matrices in bfloat16."""
    a = torch.ones(edge, edge, device=device, dtype=torch.bfloat16)
    seconds = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        b = a @ a
        float(b[0, 0])  # waits for the device
        seconds.append(time.perf_counter() - start)
    return 2 * edge**3 / median(seconds[2:])

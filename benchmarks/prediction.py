"""What the model predicts for 100,000 scans on 64 GPUs from assumptions: nothing is measured on a GPU."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from benchmarks.measure import Table, by
from benchmarks.scaling_model import (
    KINDS,
    MIB,
    Link,
    Shape,
    Speed,
    messages,
    negatives,
    sent_bytes,
    step,
    step_bytes,
)
from medcl3d.config.field_types import Choice
from medcl3d.encoders.memory import activation_bytes
from medcl3d.encoders.network import build_network, forward_flops

TITLE = "Scaling: 100,000 scans on 64 GPUs, predicted"


@dataclass(frozen=True)
class Assumed:
    """Assumptions about a cluster and a pretraining on it; none is measured.

    tflops      sustained by a GPU in a step, of bfloat16
    gb_per_s    that a GPU sends to another node
    latency_us  of a hop
    workers     processes that load for each GPU
    """

    scans: int = 100_000
    gpus: int = 64
    samples: int = 32
    patch: tuple[int, int, int] = (96, 96, 96)
    depth: int = 18
    hidden: int = 256
    dim: int = 128
    keys: int = 40
    tflops: float = 100.0
    gb_per_s: float = 25.0
    latency_us: float = 20.0
    workers: int = 8


def prediction(measured: Speed, assumed: Assumed | None = None) -> Table:
    """The table of a prediction. measured: its time of loading a sample, scaled by the voxels of a crop."""
    assumed = assumed or Assumed()
    network = build_network(Choice("resnet3d", {"depth": assumed.depth}), 1, decoder=False)
    flops = 3 * forward_flops(
        network, 1, assumed.patch
    )  # the backward pass takes about twice the forward pass
    shape = Shape(
        assumed.samples,
        assumed.hidden,
        assumed.dim,
        assumed.keys,
        sum(p.numel() for p in network.parameters()),
        activation_bytes(network, 1, assumed.patch, None) // 2,  # bfloat16
    )
    voxels = assumed.patch[0] * assumed.patch[1] * assumed.patch[2]
    speed = Speed(
        load=measured.load * voxels / 32**3,
        crop=flops / (assumed.tflops * 1e12),
        pair=3 * 2 * assumed.dim / (assumed.tflops * 1e12),
        fixed=0.0,
        links=dict.fromkeys(KINDS, Link(assumed.latency_us * 1e-6, 1 / (assumed.gb_per_s * 1e9))),
        workers=assumed.workers,
    )
    return Table(TITLE, ("quantity", "value", "from"), _rows(assumed, shape, speed, flops), _note(assumed))


def _rows(assumed: Assumed, shape: Shape, speed: Speed, flops: int) -> tuple[tuple[str, str, str], ...]:
    found = step(shape, speed, assumed.gpus)
    work, alone = (step(shape, replace(speed, load=0.0), ranks).total for ranks in (assumed.gpus, 1))
    needed = math.ceil(shape.samples * speed.load / work)
    steps = assumed.scans // (assumed.gpus * assumed.samples)
    sent = sum(sent_bytes(one, assumed.gpus) for one in messages(shape))
    read = assumed.gpus * shape.rows * 2 * assumed.patch[0] * assumed.patch[1] * assumed.patch[2]
    gathered = step_bytes(shape, assumed.gpus) - step_bytes(shape, 1)
    return (
        ("sustained TFLOP/s of a GPU", f"{assumed.tflops:g}", "assumed"),
        ("GB/s that a GPU sends", f"{assumed.gb_per_s:g}", "assumed"),
        ("latency of a hop, µs", f"{assumed.latency_us:g}", "assumed"),
        ("workers per GPU", f"{assumed.workers}", "assumed"),
        ("samples per GPU and step", f"{assumed.samples}", "chosen"),
        ("crop", by(assumed.patch), "chosen"),
        ("TFLOP of a crop, forward and backward", f"{flops / 1e12:.2f}", "3 times the counted forward pass"),
        (
            "loading a sample, ms of a worker",
            f"{1000 * speed.load:.1f}",
            "measured here at 32 x 32 x 32, times voxels",
        ),
        ("encoder, ms", f"{1000 * found.encoder:.0f}", "model"),
        ("loss, ms", f"{1000 * found.loss:.3f}", "model, without starting its kernels"),
        (
            "communication, ms",
            f"{1000 * found.communication:.0f}",
            "model, not hidden behind the backward pass",
        ),
        ("step without loading, ms", f"{1000 * work:.0f}", "model"),
        ("efficiency without loading", f"{100 * alone / work:.0f}%", "model, one GPU over 64"),
        ("loading beside the step, ms", f"{1000 * found.load:.0f}", "model"),
        ("workers per GPU that keep up with it", f"{needed}", "model"),
        ("step, ms", f"{1000 * found.total:.0f}", "model, the longer of both"),
        ("negatives per anchor", f"{negatives(shape, assumed.gpus)}", "2 (64 B - 1)"),
        ("MB sent per GPU and step", f"{sent / 1e6:.0f}", "model"),
        ("MB that embeddings of the other ranks take", f"{gathered / MIB:.0f}", "model"),
        (
            "GB of a step on a GPU",
            f"{step_bytes(shape, assumed.gpus) / 2**30:.1f}",
            "model, without workspace",
        ),
        ("GB/s that all workers read", f"{read / found.total / 1e9:.1f}", "float16 voxels of crops"),
        ("steps of an epoch", f"{steps}", "100,000 / (64 B)"),
        ("seconds of an epoch", f"{steps * found.total:.1f}", "model"),
    )


def _note(assumed: Assumed) -> str:
    return (
        f"Nothing here was measured on a GPU or a network: {assumed.scans:,} scans, a residual network of "
        f"depth {assumed.depth}, SimCLR, a hop between any two GPUs as slow as between nodes. NCCL uses "
        "trees, whose latency grows with the logarithm of the ranks, and hides most of the gradients' "
        "communication behind the backward pass, so communication is an upper bound. The time of a GPU is "
        "the first assumption to replace: `python tools/benchmark.py gpu` measures it."
    )

"""Benchmark of ranks on this machine: the model of `scaling_model` beside steps on 1, 2 and 4 ranks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.measure import PATCH, Bench, Table, by, one_core, take_turns
from benchmarks.prediction import TITLE as PREDICTION
from benchmarks.prediction import prediction
from benchmarks.ranks import SIZES, collective_times, pretraining_rows
from benchmarks.scaling_model import (
    KINDS,
    MIB,
    Link,
    Shape,
    Speed,
    Step,
    hops,
    message_s,
    messages,
    negatives,
    sent_bytes,
    step,
    step_bytes,
)
from benchmarks.step import configuration
from medcl3d.config.loading import parse
from medcl3d.core.embeddings import Embeddings
from medcl3d.core.keys import Keys
from medcl3d.encoders.memory import activation_bytes
from medcl3d.objectives.contrast import contrast
from medcl3d.objectives.simclr import SimCLR
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.parts import Pretraining, assemble

ENCODER = {"resnet3d": {"depth": 10, "width": 0.25}}
WIDE = 256  # ranks whose columns the loss is also measured with
TITLES = (
    "Scaling: parameters",
    "Scaling: predicted and measured",
    "Scaling: collectives",
    "Scaling: 1 to 64 ranks, predicted",
    PREDICTION,
)
PREDICTED = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Measured:
    """What was measured on some ranks.

    step_s, memory_mb  of a whole step, on rank 0
    times              kind and bytes of a collective -> seconds
    sent               bytes that a rank sends in a step, as recorded
    number             of collectives in a step
    """

    step_s: float
    memory_mb: float
    times: dict[tuple[str, int], float]
    sent: float
    number: int


def scaling(bench: Bench) -> list[Table]:
    """Measure the parameters on one process and two ranks, and predict steps on 1 to 64 ranks."""
    config = configuration(bench, ENCODER, log_every=max(1, bench.scale.steps // 6), precision="float32")
    parts = assemble(parse({**config, "out_dir": "unused"}, PretrainConfig, "benchmark"))
    shape = shape_of(parts)
    found = {ranks: measured(bench, config, ranks) for ranks in bench.scale.ranks}
    speed = with_network(own_speed(bench, parts), found)
    return [
        parameters(shape, speed),
        held_against(shape, speed, found),
        collectives(speed, found),
        of_one_to_64(shape, replace(speed, cores=float("inf"))),
        prediction(speed),
    ]


def shape_of(parts: Pretraining) -> Shape:
    """The shape of a pretraining with SimCLR."""
    learner, raw = parts.learner, parts.dataset()[0]
    assert isinstance(learner.objective, SimCLR)
    first = learner.objective.projector.layers[0]
    assert isinstance(first, nn.Linear)
    crops = raw.main.crops.shape
    return Shape(
        samples=parts.config.train.samples_per_step,
        hidden=first.out_features,
        dim=learner.objective.dim,
        keys=raw.keys.matrix().shape[1],
        weights=sum(p.numel() for p in learner.parameters() if p.requires_grad),
        activations=activation_bytes(learner.network, crops[1], crops[2:], None),
    )


def own_speed(bench: Bench, parts: Pretraining) -> Speed:
    """The times of one process on one core; those of sending are 0."""
    learner, dataset, steps = parts.learner, parts.dataset(), count()
    raw = dataset[0]
    optimizer = torch.optim.AdamW(learner.parameters(), fused=True)
    learner.train()
    learner.announce(False)

    def encode() -> None:
        torch.stack([one.z.sum() for one in learner.embed(raw).values()]).sum().backward()  # type: ignore[no-untyped-call]

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()

    works: dict[str, Callable[[], Any]] = {
        "load": lambda: dataset[next(steps) % len(dataset)],
        "encode": encode,
        "loss": loss_of(parts, 1),
        "wide loss": loss_of(parts, WIDE),
        "update": update,
    }
    with one_core():
        times = {name: float(np.median(s)) for name, s in take_turns(works, bench.scale.repeats).items()}
    samples = parts.config.train.samples_per_step
    rows = 2 * samples
    pair = max(0.0, times["wide loss"] - times["loss"]) / (rows * rows * (WIDE - 1))
    fixed = times["update"] + max(0.0, times["loss"] - rows * rows * pair)
    return Speed(times["load"] / samples, times["encode"] / rows, pair, fixed)


def loss_of(parts: Pretraining, ranks: int) -> Callable[[], None]:
    """The loss of this rank's rows and the columns of some ranks, forward and backward."""
    with torch.no_grad():
        (own,) = parts.learner.embed(parts.dataset()[0]).values()
    columns = Embeddings(own.z.repeat(ranks, 1), Keys.cat(_of_ranks(own.keys, ranks)))

    def work() -> None:
        rows = Embeddings(own.z.clone().requires_grad_(), own.keys)
        loss = contrast(rows, parts.learner.relating, 0.1, "all", False, targets=columns)
        loss.value.backward()  # type: ignore[no-untyped-call]

    return work


def _of_ranks(keys: Keys, ranks: int) -> Iterator[Keys]:
    """The keys of other samples of other scans for each further rank."""
    for number in range(ranks):
        moved = {name: getattr(keys, name) + number * 1_000_000 for name in ("sample", "scan", "frame")}
        yield replace(keys, **moved)


def measured(bench: Bench, config: dict[str, Any], ranks: int) -> Measured:
    """Steps and collectives of real ranks, with the same number of samples for each."""
    samples = bench.scale.samples_per_step
    train = {**config["train"], "samples_per_step": samples * ranks}
    rows = pretraining_rows(ranks, {**config, "train": train}, bench.folder / "scaling")
    seconds = [train["samples_per_step"] / row["samples_per_s"] for row in rows]
    memory = rows[-1]["peak_memory_mb"]
    if ranks == 1:
        return Measured(float(np.median(seconds)), memory, {}, 0.0, 0)
    few = {**train, "steps": 4, "log_every": 4, "warmup_steps": 1}
    found = collective_times(ranks, {**config, "train": few, "out_dir": "unused"}, bench.folder / "scaling")
    times = {(kind, size): seconds for kind, size, seconds in found["times"]}
    sent = sum(sent_bytes((one["kind"], one["bytes"]), ranks) for one in found["step"])
    return Measured(float(np.median(seconds)), memory, times, sent, len(found["step"]))


def with_network(speed: Speed, found: dict[int, Measured]) -> Speed:
    """The speed with the links of two ranks."""
    return replace(speed, links={kind: link_of(kind, found[2]) for kind in KINDS}, cores=num_cores())


def link_of(kind: str, two: Measured) -> Link:
    """Latency and time per byte from the smallest and the largest collective of a kind on two ranks."""
    small, large = (two.times[kind, size] for size in (SIZES[0], SIZES[-1]))
    sent = [sent_bytes((kind, size), 2) for size in (SIZES[0], SIZES[-1])]
    byte = max(0.0, large - small) / (sent[1] - sent[0])
    return Link(max(0.0, small - sent[0] * byte) / hops(kind, 2), byte)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parameters(shape: Shape, speed: Speed) -> Table:
    """The measured parameters of the model."""
    one = "processor time of one process on one core"
    two, links = "two ranks on this machine", speed.links.items()
    rows = (
        ("B", "samples per rank and step, of two views", f"{shape.samples}", "chosen"),
        (
            "h, d",
            "widths of batch norm in the head and of embeddings",
            f"{shape.hidden}, {shape.dim}",
            "chosen",
        ),
        ("k", "numbers in the keys of a view", f"{shape.keys}", "counted"),
        ("P", "trained weights", f"{shape.weights}", "counted"),
        ("a", "activations per crop, MB", f"{shape.activations / MIB:.1f}", "from shapes"),
        ("t_load", "loading a sample, ms", f"{1000 * speed.load:.2f}", one),
        ("t_crop", "a crop forward and backward, ms", f"{1000 * speed.crop:.2f}", one),
        ("t_pair", "a pair in the loss, ns", f"{1e9 * speed.pair:.2f}", one),
        ("t_fixed", "optimiser and fixed part of the loss per step, ms", f"{1000 * speed.fixed:.2f}", one),
        *((f"latency, {kind}", "of a hop, ms", f"{1000 * link.latency:.3f}", two) for kind, link in links),
        *(
            (f"bandwidth, {kind}", "of a rank, GB/s", f"{1e-9 / max(link.byte, 1e-15):.2f}", two)
            for kind, link in links
        ),
        ("C", "cores, which ranks share", f"{speed.cores:.0f}", "of this machine"),
    )
    note = (
        f"SimCLR with `overlapping_crops`, crops of {by(PATCH)} voxels and a residual network of depth 10 "
        "and width 0.25, float32, one thread per rank, no workers. Medians."
    )
    return Table(TITLES[0], ("symbol", "of", "value", "measured as"), rows, note)


def held_against(shape: Shape, speed: Speed, found: dict[int, Measured]) -> Table:
    """Predictions beside measurements."""
    base = found[1].memory_mb - step_bytes(shape, 1) / MIB
    rows = []
    for ranks, real in found.items():
        time, memory = 1000 * step(shape, speed, ranks).total, base + step_bytes(shape, ranks) / MIB
        sent = sum(sent_bytes(one, ranks) for one in messages(shape))
        rows.append(
            (
                str(ranks),
                f"{min(1.0, speed.cores / ranks):g}",
                f"{time:.0f}",
                f"{1000 * real.step_s:.0f}",
                f"{time / (1000 * real.step_s):.2f}",
                f"{memory:.0f}",
                f"{real.memory_mb:.0f}",
                f"{sent / 1e6:.3f}",
                f"{real.sent / 1e6:.3f}",
                f"{real.number}",
                str(negatives(shape, ranks)),
            )
        )
    columns = (
        "ranks", "cores per rank", "ms per step, predicted", "ms per step, measured", "predicted / measured",
        "peak MB, predicted", "peak MB, measured", "MB sent per rank, predicted", "MB sent, recorded",
        "collectives", "negatives per anchor",
    )  # fmt: skip
    note = (
        "Ranks are processes on this machine that exchange data by gloo; each has B samples, so the batch "
        "grows with their number. Ranks that outnumber the cores share them: the model then multiplies its "
        "time by ranks / cores, and so does not describe a network between machines. Wall time of real "
        "steps, median. Memory: peak of rank 0; the part of the process that the model does not have is "
        "that of one rank. Sent: by a ring; recorded: from the collectives of a real step."
    )
    return Table(TITLES[1], columns, tuple(rows), note)


def collectives(speed: Speed, found: dict[int, Measured]) -> Table:
    """Predicted and measured times of collectives."""
    rows = []
    for ranks, real in found.items():
        turns = max(1.0, ranks / speed.cores)
        for message, seconds in real.times.items():
            predicted = message_s(message, ranks, speed) * turns
            times = (f"{1000 * one:.3f}" for one in (predicted, seconds))
            rows.append((str(ranks), message[0], str(message[1]), *times, f"{predicted / seconds:.2f}"))
    columns = (
        "ranks",
        "collective",
        "bytes of a rank",
        "ms, predicted",
        "ms, measured",
        "predicted / measured",
    )
    note = (
        f"Latency and bandwidth are fitted to {SIZES[0]} and {SIZES[-1]} bytes on two ranks, which are equal "
        "by construction; all other rows are predictions. Wall time, median."
    )
    return Table(TITLES[2], columns, tuple(rows), note)


def of_one_to_64(shape: Shape, speed: Speed) -> Table:
    """Predictions for more ranks than this machine has cores."""
    rows = []
    for ranks in PREDICTED:
        found: Step = step(shape, speed, ranks)
        sent = sum(sent_bytes(one, ranks) for one in messages(shape))
        parts = (found.load, found.encoder, found.loss + found.fixed, found.communication, found.total)
        rows.append(
            (
                str(ranks),
                *(f"{1000 * part:.1f}" for part in parts),
                f"{100 * step(shape, speed, 1).total / found.total:.0f}%",
                f"{sent / 1e6:.2f}",
                f"{step_bytes(shape, ranks) / MIB:.0f}",
                str(negatives(shape, ranks)),
            )
        )
    columns = (
        "ranks", "load, ms", "encoder, ms", "loss and optimiser, ms", "communication, ms", "step, ms",
        "efficiency", "MB sent per rank", "MB of a step", "negatives per anchor",
    )  # fmt: skip
    note = (
        "Predicted only, with the parameters above and a core for each rank: latency and bandwidth are "
        "those between processes of one machine, not of a network. Efficiency: the time of one rank divided "
        "by that of all, for the same samples per rank."
    )
    return Table(TITLES[3], columns, tuple(rows), note)

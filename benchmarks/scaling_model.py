"""A model of a step of SimCLR on W ranks: time, memory, and bytes sent, from measured or assumed parameters.

Each rank has B samples of two views, n = 2 B rows, which are compared with the W n views of all ranks. A ring
of W ranks sends in hops: an all-gather or a reduce-scatter takes W - 1 of them, an all-reduce 2 (W - 1); the
time of a hop is a latency and a time per byte. Source: Thakur et al., IJHPCA 2005, sections 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

KINDS = ("all-gather", "reduce-scatter", "all-reduce")
MIB = 2**20
FLOAT, DOUBLE = 4, 8
FIRST_BUCKET, BUCKET = MIB, 25 * MIB  # bytes of gradients that DistributedDataParallel sends at once
BYTES_PER_WEIGHT = 4 * FLOAT  # the weight, its gradient, and two averages of AdamW
Message = tuple[str, int]
"""The kind of a collective, and the bytes that one rank holds: gives, if it gathers; gets, if it scatters."""


@dataclass(frozen=True)
class Shape:
    """What determines how much a step sends and stores.

    samples      of one rank and step, B
    hidden, dim  widths of the head's batch norm and of the embeddings
    keys         numbers in the keys of a view
    weights      that are trained
    activations  bytes per crop that are stored for the backward pass
    """

    samples: int
    hidden: int
    dim: int
    keys: int
    weights: int
    activations: int

    @property
    def rows(self) -> int:
        """Views of one rank, n."""
        return 2 * self.samples


@dataclass(frozen=True)
class Link:
    """Seconds of a hop between ranks, and per byte that a rank sends."""

    latency: float
    byte: float


@dataclass(frozen=True)
class Speed:
    """Times of one rank in seconds.

    load     of a sample, by one process
    crop     forward and backward pass of a crop, with its augmentation
    pair     loss of a row and a column, forward and backward
    fixed    per step: the optimiser, and the part of the loss that does not grow with the columns
    links    of each kind of collective
    cores    of the machine, which ranks share; infinite if each rank has its own
    workers  processes that load beside each rank, during its step; 0: the rank loads before each step
    """

    load: float
    crop: float
    pair: float
    fixed: float
    links: Mapping[str, Link] = field(default_factory=dict)
    cores: float = math.inf
    workers: int = 0


@dataclass(frozen=True)
class Step:
    """Seconds of a step and of its parts, `load` before it or, with workers, beside it."""

    load: float
    encoder: float
    loss: float
    fixed: float
    communication: float
    total: float


def messages(shape: Shape) -> list[Message]:
    """The collectives of a step, in its order."""
    hidden, embeddings = (shape.rows * width * FLOAT for width in (shape.hidden, shape.dim))
    return [
        ("all-gather", hidden),
        ("all-gather", embeddings),
        ("all-gather", shape.rows * shape.keys * DOUBLE),
        ("all-reduce", 2 * DOUBLE),  # weight and loss
        ("reduce-scatter", embeddings),
        ("reduce-scatter", hidden),
        *(("all-reduce", size) for size in _buckets(shape.weights * FLOAT)),
        ("all-reduce", FLOAT),  # votes to stop
    ]


def _buckets(gradients: int) -> list[int]:
    """The bytes of each bucket of gradients, as if a bucket could end within a weight."""
    rest = max(0, gradients - FIRST_BUCKET)
    others = [min(BUCKET, rest - start) for start in range(0, rest, BUCKET)]
    return [min(gradients, FIRST_BUCKET), *others]


def hops(kind: str, ranks: int) -> int:
    """The number of hops of a ring."""
    return (2 if kind == "all-reduce" else 1) * (ranks - 1)


def sent_bytes(message: Message, ranks: int) -> float:
    """The bytes that each rank sends."""
    kind, size = message
    return hops(kind, ranks) * (size / ranks if kind == "all-reduce" else size)


def message_s(message: Message, ranks: int, speed: Speed) -> float:
    """Seconds of a collective."""
    if ranks == 1:
        return 0.0
    link = speed.links[message[0]]
    return hops(message[0], ranks) * link.latency + sent_bytes(message, ranks) * link.byte


def step(shape: Shape, speed: Speed, ranks: int) -> Step:
    """The time of a step.

    If ranks outnumber the cores, all of it takes ranks / cores times as long: ranks take turns on the cores,
    also to send, since the processor copies. Sending during the backward pass is not modelled.
    """
    turns = max(1.0, ranks * (1 + speed.workers) / speed.cores)
    load = shape.samples * speed.load / max(1, speed.workers) * turns
    encoder = shape.rows * speed.crop * turns
    loss = shape.rows * shape.rows * ranks * speed.pair * turns
    sending = sum(message_s(one, ranks, speed) for one in messages(shape)) * turns
    work = encoder + loss + speed.fixed * turns + sending
    total = max(load, work) if speed.workers else load + work
    return Step(load, encoder, loss, speed.fixed * turns, sending, total)


def step_bytes(shape: Shape, ranks: int) -> int:
    """Bytes of one rank's step: weights and their averages, activations, and what it has of all ranks.

    The latter: batch norm's rows and the embeddings, each with a gradient, and the keys as one matrix and as
    columns. Blocks of similarities have a fixed size and are part of the process.
    """
    of_a_view = 2 * FLOAT * (shape.hidden + shape.dim) + 2 * DOUBLE * shape.keys
    gathered = ranks * shape.rows * of_a_view
    return shape.weights * BYTES_PER_WEIGHT + shape.rows * shape.activations + gathered


def negatives(shape: Shape, ranks: int) -> int:
    """Views of other samples, of all ranks."""
    return 2 * (shape.samples * ranks - 1)

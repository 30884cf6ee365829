"""The collectives of training steps on ranks: kind, bytes, and the function of medcl3d that started each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medcl3d.distributed.collectives import process_group, rank
from medcl3d.io.atomic import write_json
from medcl3d.pretraining.parts import Pretraining
from tests.pretend.device import place
from tests.pretend.steps import parts_of, steps_of

KINDS = {
    "gather": "all-gather",
    "scatter": "reduce-scatter",
    "reduce": "all-reduce",
    "broadcast": "broadcast",
}
"""Part of an operation's name -> kind of the collective; the first that fits."""


@dataclass(frozen=True)
class Collective:
    """One collective: its kind, the bytes of the tensor that one rank holds, and where it was started.

    The tensor of an all-gather is what a rank gives, that of a reduce-scatter what it gets.
    """

    kind: str
    bytes: int
    place: str


class Recorder(TorchDispatchMode):
    """Records collectives in steps, also those of DistributedDataParallel; `next_step` begins a new one."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[list[Collective]] = [[]]

    def next_step(self) -> None:
        """Record what follows in a new step."""
        self.steps.append([])

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            name = func.overloadpacket.__name__
            kind = next((kind for part, kind in KINDS.items() if part in name), name)
            sizes = [x.numel() * x.element_size() for x in tree_leaves(args) if isinstance(x, Tensor)]
            self.steps[-1].append(Collective(kind, min(sizes, default=0), place("distributed.")))
        return func(*args, **(kwargs or {}))


def recorded(parts: Pretraining, device: torch.device) -> list[list[Collective]]:
    """The collectives of the last step but one, and of the last, which is logged; of 4 steps or more.

    In the second step DistributedDataParallel orders its buckets again, which takes a further collective.
    """
    recorder = Recorder()
    with recorder:
        steps_of(parts, device, recorder.next_step)
    return recorder.steps[-2:]


def record_steps(
    store: Path,
    objectives: Sequence[str],
    out: Path,
    variables: Mapping[str, str],
) -> None:
    """In a process of one rank: write the collectives of a step, and of a logged one, of each objective.

    out: a JSON file, which rank 0 writes: objective -> two lists of the fields of `Collective`; variables:
    those of torchrun
    """
    os.environ.update(variables)
    torch.set_num_threads(1)
    found = {}
    with process_group(60) as device:
        for objective in objectives:
            found[objective] = [
                [astuple(one) for one in step] for step in recorded(parts_of(store, objective), device)
            ]
        if rank() == 0:
            write_json(out, found)

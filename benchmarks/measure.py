"""Common parts of benchmarks: a simulated cohort, processor time in turns, geometric means."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medcl3d.evaluation.statistics.crossed import over_replicates
from medcl3d.pairs import relates_points
from medcl3d.sampling.pair_dataset import PairDataset
from medcl3d.sampling.plan import Plan
from medcl3d.store.scan_selection import DataConfig, pretraining_scans
from medcl3d.store.store import Store

PATCH = (32, 32, 32)
FEWEST_TURNS = 3
ROOT = Path(__file__).parents[1]
SCANS = ROOT.parent / "shared" / "data" / "ixi40"


@dataclass(frozen=True)
class Scale:
    """Size of the benchmarks.

    The cohort has `num_patients` with up to two visits and two modalities of `shape` voxels; `large` is the
    edge of the volumes that loaders of other libraries are compared on. Alternatives are measured in
    `repeats` turns, but no turn begins after `seconds` of processor time if there are `FEWEST_TURNS`. `scans`
    is a BIDS folder of real scans, of which `prepared` patients are prepared.
    """

    num_patients: int = 6
    shape: tuple[int, int, int] = (96, 96, 96)
    large: int = 192
    repeats: int = 7
    seconds: float = 45.0
    crops: int = 256
    steps: int = 12
    samples_per_step: int = 8
    depth: int = 18
    embeddings: tuple[int, ...] = (1024, 4096, 16384, 65536)
    few_embeddings: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    loss_turns: int = 2
    starts: int = 3
    scans: Path = SCANS
    prepared: int = 16
    collections: tuple[int, ...] = (1000, 5000, 20000)
    rows: tuple[int, ...] = (100, 1000, 10_000, 100_000)
    ranks: tuple[int, ...] = (1, 2, 4)


@dataclass(frozen=True)
class Table:
    """The results of one benchmark."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


class Bench:
    """A simulated cohort, prepared in a folder, and the size of the benchmarks."""

    def __init__(self, folder: Path, scale: Scale):
        self.folder, self.scale = folder, scale
        self._began = time.perf_counter()

    def say(self, text: str) -> None:
        """Report progress, with the seconds since the start."""
        print(f"{time.perf_counter() - self._began:6.0f} s  {text}", file=sys.stderr, flush=True)

    def turns(
        self,
        title: str,
        works: dict[str, Callable[[], Any]],
        timed: Callable[[Callable[[], Any]], float] | None = None,
    ) -> dict[str, np.ndarray]:
        """`take_turns` with the repeats and the seconds of the scale; reports each turn."""
        seconds = take_turns(
            works,
            self.scale.repeats,
            self.scale.seconds,
            lambda turn: self.say(f"{title}: {turn}"),
            timed or cpu_seconds,
        )
        means = ", ".join(f"{name} {one.mean():.3g} s" for name, one in seconds.items())
        self.say(f"{title}: {means}")
        return seconds

    @cached_property
    def store(self) -> Store:
        """The prepared cohort."""
        return self.prepared("store")

    def prepared(self, name: str, **options: Any) -> Store:
        """The same cohort in another folder, prepared with options."""
        from medcl3d.preprocessing.options import prepare_options
        from medcl3d.preprocessing.prepare import prepare

        self.say(f"preparing simulated scans ({name})")
        cohort = {"num_patients": self.scale.num_patients, "shape": list(self.scale.shape), "workers": 1}
        given = prepare_options("simulated", cohort | options)
        prepare("simulated", None, self.folder / name, fields=given.fields, options=given.options)
        return Store.open(self.folder / name)

    def dataset(
        self,
        strategy: Any,
        recipe: Any,
        samples_per_step: int,
        store: Store | None = None,
        patch: tuple[int, int, int] = PATCH,
    ) -> PairDataset:
        """The dataset of pretraining on the cohort, or on another store.

        ConfigError, DataError if the strategy cannot be used with this cohort.
        """
        store = self.store if store is None else store
        scans = pretraining_scans(
            store, DataConfig(root=store.root, patch_size=patch, smaller_than_patch="skip")
        )
        anchors = strategy.anchors(scans.collection)
        num_points = strategy.num_points if relates_points(strategy) else 0
        return PairDataset(
            store,
            scans,
            strategy,
            recipe,
            Plan(anchors.ids, samples_per_step, 0),
            1 << 30,
            num_points=num_points,
        )


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Limit torch to one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def cpu_seconds(work: Callable[[], Any]) -> float:
    """Processor time of this process for one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def take_turns(
    works: dict[str, Callable[[], Any]],
    repeats: int,
    limit_s: float = math.inf,
    say: Callable[[str], None] = lambda _: None,
    timed: Callable[[Callable[[], Any]], float] = cpu_seconds,
) -> dict[str, np.ndarray]:
    """Seconds ``[turns]`` of each function, measured in alternating turns after a warm-up call.

    There are `repeats` turns, or fewer, but not fewer than `FEWEST_TURNS`, if `limit_s` seconds of processor
    time are used up, the warm-up included. `say` reports each turn; `timed` calls a function and returns its
    seconds.
    """
    began = time.process_time()
    say("warm-up")
    for work in works.values():
        work()
    seconds: list[dict[str, float]] = []
    while len(seconds) < repeats:
        if len(seconds) >= FEWEST_TURNS and time.process_time() - began > limit_s:
            break
        say(f"turn {len(seconds) + 1} of {repeats}")
        seconds.append({name: timed(work) for name, work in works.items()})
    return {name: np.array([one[name] for one in seconds]) for name in works}


def geometric(values: np.ndarray, form: str = ".0f") -> str:
    """Geometric mean of ``[repeats]`` with its 95% interval (Student's t on logarithms)."""
    interval = over_replicates(np.log(values)).interval()
    return (
        f"{math.exp(interval.mean):{form}} ({math.exp(interval.low):{form}} to "
        f"{math.exp(interval.high):{form}})"
    )


def compared(
    values: Mapping[str, np.ndarray],
    reference: str,
    form: str = ".0f",
    ratio_form: str = ".2f",
    *,
    first: Sequence[str] = (),
    inverse: bool = False,
) -> list[tuple[str, ...]]:
    """Rows of a table: name, mean of the values ``[turns]``, and mean of their ratio to the reference.

    first: cells before the name. inverse: the reference by the values, as for rates. The ratio of the
    reference is "1".
    """
    rows = []
    for name, one in values.items():
        ratios = values[reference] / one if inverse else one / values[reference]
        ratio = "1" if name == reference else geometric(ratios, ratio_form)
        rows.append((*first, name, geometric(one, form), ratio))
    return rows


def run_child(command: Sequence[str]) -> str:
    """The output of a command that runs on one core, in the folder of the repository.

    RuntimeError if it fails.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else each process compiles medcl3d's own files
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-500:]}")
    return done.stdout


def turns_of(repeats: int) -> str:
    """The number of turns, as text."""
    return f"{FEWEST_TURNS} to {repeats} turns" if repeats > FEWEST_TURNS else f"{repeats} turns"


def by(shape: Sequence[int] | np.ndarray) -> str:
    """A shape as text."""
    return " x ".join(str(int(n)) for n in shape)

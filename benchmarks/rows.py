"""Benchmark of the rows of a collection: start-up, time per sample and memory of a process, to 100,000 rows.

The rows are simulated: further patients whose files are hard links to those of a few scans. Each measurement
runs in a separate process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.collection import PAIRS, busy_s, configuration_of
from benchmarks.measure import Bench, Table
from medcl3d.config.loading import parse
from medcl3d.distributed.memory import peak_memory_mb
from medcl3d.io.atomic import write_json
from medcl3d.io.table_file import read_table
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.parts import assemble
from medcl3d.sampling.pair_dataset import PairDataset
from medcl3d.store.store import Store
from medcl3d.store.stored_scan import stored_names

STRATEGIES = {"overlapping_crops": "overlapping_crops", **PAIRS}
ROLLUP, STATUS = Path("/proc/self/smaps_rollup"), Path("/proc/self/status")
TITLE = "Rows of a collection"
STEPS = 40  # of 8 samples, spread over an epoch
OWN_IDS = ("scan", "patient", "frame")
"""Columns whose values differ between the copies of a scan."""


@dataclass(frozen=True)
class Cost:
    """Cost of one process.

    start_s    processor seconds to open the store, plan an epoch and make the first batch
    sample_ms  processor time of a sample, over `STEPS` batches spread over the epoch
    own_mb     of the process, after them; worker_mb: what a worker does not share, after as many batches
    """

    start_s: float
    sample_ms: float
    own_mb: float
    worker_mb: float


def rows(bench: Bench) -> Table:
    """Measure collections of several numbers of rows."""
    found = []
    for num in bench.scale.rows:
        root = simulated_rows(bench.store, bench.folder / f"rows_{num}", num)
        for pairs in STRATEGIES:
            cost = _measured(root, pairs)
            numbers = f"{cost.start_s:.2f}", f"{cost.sample_ms:.3f}", f"{cost.own_mb:.0f}"
            found.append((f"{num:,}", pairs, *numbers, f"{cost.worker_mb:.0f}"))
        shutil.rmtree(root)
    columns = ("rows", "strategy", "start-up, s", "ms per sample", "MB of the process", "MB of a worker")
    note = (
        f"Rows are further patients whose files are hard links to those of {len(bench.store)} simulated "
        "scans. Each line is a separate process on one core. Start-up: processor time to open the store, "
        "plan an epoch and make the first batch, without imports. Sample: processor time over "
        f"{STEPS} batches of 8, spread over an epoch, crops of 32 x 32 x 32. Memory: of the process after "
        "them, with imports, without the pages of mapped files, which the system can drop. Worker: what a "
        "forked process has written and does not share after as many batches; Python writes to count "
        "references."
    )
    return Table(TITLE, columns, tuple(found), note)


@dataclass(frozen=True)
class _Files:
    """The files of a stored scan by their place in `stored_names`, and its description."""

    voxels: dict[int, Path]
    about: dict[str, Any]

    @staticmethod
    def of(store: Store, scan: str) -> _Files:
        *voxels, about = (store.root / "store" / name for name in stored_names(scan))
        found = {number: path for number, path in enumerate(voxels) if path.exists()}
        return _Files(found, json.loads(about.read_text()))

    def copy_to(self, root: Path, scan: str) -> None:
        """Link the files as those of another scan."""
        *voxels, about = (root / "store" / name for name in stored_names(scan))
        for number, path in self.voxels.items():
            os.link(path, voxels[number])
        about.write_text(json.dumps(self.about | {"scan": scan}))


def simulated_rows(store: Store, root: Path, num: int) -> Path:
    """Write a store of `num` rows, which repeat the scans of a store as further patients."""
    (root / "store").mkdir(parents=True)
    shutil.copy(store.root / "prepared.json", root)
    table = read_table(store.root / "manifest.csv")
    split = json.loads((store.root / "split.json").read_text())
    copies, names = -(-num // len(table)), table["scan"].tolist()
    scans = [_Files.of(store, name) for name in names]
    for row in range(num):
        scans[row % len(names)].copy_to(root, f"{names[row % len(names)]}_{row // len(names)}")
    number, copy = np.arange(num) % len(table), np.arange(num) // len(table)
    table = table.iloc[number].reset_index(drop=True)
    for name in (one for one in OWN_IDS if one in table):
        table[name] = [f"{value}_{i}" for value, i in zip(table[name], copy.tolist(), strict=True)]
    table.to_csv(root / "manifest.csv", index=False)
    present = set(table["patient"])
    sides = {
        side: [
            one
            for patient in split[side]
            for copy in range(copies)
            if (one := f"{patient}_{copy}") in present
        ]
        for side in ("train", "test")
    }
    write_json(root / "split.json", {"schema": split["schema"], **sides})
    return root


def _measured(root: Path, pairs: str) -> Cost:
    """The cost, measured in another process."""
    path = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})"
    code = f"{path}; from benchmarks.rows import measure"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; measure({str(root)!r}, {pairs!r})"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def measure(root: str, pairs: str) -> None:
    """Print the `Cost` of a strategy as JSON."""
    torch.set_num_threads(1)
    config = configuration_of(Path(root), STRATEGIES[pairs], [32] * 3, smaller_than_patch="pad")
    parsed = parse(config, PretrainConfig, "benchmark")
    start = busy_s()
    dataset = assemble(parsed).dataset()
    dataset[0]
    start_s = busy_s() - start
    seconds = _draw(dataset)
    own = _own_mb()
    print(
        json.dumps(
            asdict(Cost(start_s, 1000 * seconds / (STEPS * dataset.per_rank), own, _worker_mb(dataset)))
        )
    )


def _draw(dataset: PairDataset) -> float:
    """Processor seconds of `STEPS` batches, spread over an epoch."""
    every = max(1, dataset.plan.steps_per_epoch // STEPS)
    dataset[1 % dataset.plan.steps_per_epoch]
    start = time.process_time()
    for step in range(STEPS):
        dataset[step * every % dataset.plan.steps_per_epoch]
    return time.process_time() - start


def _worker_mb(dataset: PairDataset) -> float:
    """MiB that a forked process does not share with this one after drawing batches; 0 if unknown."""
    if not ROLLUP.exists():
        return 0.0
    context: Any = get_context("fork")
    receives, sends = context.Pipe(duplex=False)

    def work() -> None:
        before = _private_mb()
        _draw(dataset)
        sends.send(_private_mb() - before)

    worker = context.Process(target=work)
    worker.start()
    found = float(receives.recv())
    worker.join()
    return found


def _private_mb() -> float:
    """MiB that this process has written and shares with no other."""
    lines = [line.split() for line in ROLLUP.read_text().splitlines()]
    return sum(int(line[1]) for line in lines if line[0] == "Private_Dirty:") / 1024


def _own_mb() -> float:
    """MiB of this process without the pages of mapped files, which the system can drop; else its peak."""
    lines = [line.split() for line in STATUS.read_text().splitlines()] if STATUS.exists() else []
    own = [int(line[1]) for line in lines if line[0] == "RssAnon:"]
    return own[0] / 1024 if own else peak_memory_mb(torch.device("cpu"))

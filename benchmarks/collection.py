"""Benchmark of collections of 1,000 to 20,000 scans: cost of indexing, checking, preparing and planning.

Every stage runs in a separate process, as a command does, so that peak memory is measured per stage.
"""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from benchmarks.measure import Bench, Table, by
from medcl3d.distributed.memory import peak_memory_mb, process_peak_mb

SIDE = 16  # voxels: small scans, so that the cost depends on their number, not on their voxels
SESSIONS, MODALITIES = ("a", "b"), ("T1w", "FLAIR")
POLL_S = 0.05  # interval of reading the memory of workers
PAIRS: dict[str, Any] = {
    "longitudinal": "longitudinal",
    "tabular_neighbours": {"tabular_neighbours": {"columns": {"age": 5.0, "sex": "equal"}}},
    "metadata_kernel": {"metadata_kernel": {"columns": {"age": 5.0, "sex": "equal"}, "group_size": 2}},
}


def make_tree(root: Path, num_scans: int) -> None:
    """Write a BIDS dataset of noise: patients with two visits of two modalities, dates, age, sex and site."""
    rng = np.random.default_rng(0)
    num_patients = max(1, num_scans // (len(SESSIONS) * len(MODALITIES)))
    participants = ["participant_id\tage\tsex\tsite"]
    head = nibabel.Nifti1Image(np.zeros((SIDE,) * 3, np.int16), np.eye(4)).to_bytes()[:352]
    for number in range(num_patients):
        subject = f"sub-{number:05d}"
        participants.append(f"{subject}\t{rng.uniform(20, 80):.1f}\t{'FM'[number % 2]}\t{'ABC'[number % 3]}")
        sessions = ["session_id\tacq_time"]
        for visit, session in enumerate(SESSIONS):
            sessions.append(f"ses-{session}\t20{10 + visit:02d}-0{1 + number % 9}-14T09:30:00")
            folder = root / subject / f"ses-{session}" / "anat"
            folder.mkdir(parents=True)
            for modality in MODALITIES:
                voxels = rng.integers(0, 1000, SIDE**3, dtype=np.int16).tobytes()
                (folder / f"{subject}_ses-{session}_{modality}.nii.gz").write_bytes(
                    gzip.compress(head + voxels, 1, mtime=0)
                )
        (root / subject / f"{subject}_sessions.tsv").write_text("\n".join(sessions) + "\n")
    (root / "participants.tsv").write_text("\n".join(participants) + "\n")


def collection(bench: Bench) -> Table:
    """Measure all stages on collections of several sizes."""
    rows = []
    for num in bench.scale.collections:
        folder = bench.folder / f"collection_{num}"
        make_tree(folder / "raw", num)
        for stage in STAGES:
            found = _measured(stage, folder)
            peaks = f"{found.own_mb:.0f}", f"{found.worker_mb:.0f}" if found.worker_mb else "-"
            rows.append(
                (
                    str(num),
                    stage,
                    f"{found.wall_s:.1f}",
                    f"{found.busy_s:.1f}",
                    f"{1000 * found.busy_s / num:.2f}",
                    *peaks,
                )
            )
    workers = min(8, os.cpu_count() or 1)
    note = (
        f"A generated BIDS dataset: {len(SESSIONS)} visits per patient with {len(MODALITIES)} modalities of "
        f"{by((SIDE,) * 3)} voxels each, compressed, with dates and a table of participants. Each stage "
        f"runs in a separate process, with {workers} workers to check and prepare. Seconds of wall time "
        "depend on the disk and on other load; processor seconds include all processes and the imports of "
        "workers. Peak memory is that of the process, including imports, and of its largest worker. Again: "
        "without changes since. Plan: the work of `pretrain --check`, the order of one epoch and one batch."
    )
    columns = (
        "scans",
        "stage",
        "seconds",
        "processor seconds",
        "processor ms per scan",
        "peak MB",
        "peak MB of a worker",
    )
    return Table("Collections", columns, tuple(rows), note)


@dataclass(frozen=True)
class Cost:
    """Cost of one stage: wall and processor seconds, peak MiB of the process and of its largest worker."""

    wall_s: float
    busy_s: float
    own_mb: float
    worker_mb: float


def _measured(stage: str, folder: Path) -> Cost:
    """The cost of a stage, measured in another process."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); from "
        "benchmarks.collection import measure"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; measure({stage!r}, {str(folder)!r})"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def measure(stage: str, folder: str) -> None:
    """Print the `Cost` of a stage as JSON."""
    torch.set_num_threads(1)
    work = STAGES[stage](Path(folder))
    with _watched_workers() as peaks:
        start, busy = time.perf_counter(), busy_s()
        work()
        wall_s, used_s = time.perf_counter() - start, busy_s() - busy
    cost = Cost(wall_s, used_s, peak_memory_mb(torch.device("cpu")), max(peaks.values(), default=0.0))
    print(json.dumps(asdict(cost)))


def busy_s() -> float:
    """Processor time of this process and of its workers that have ended."""
    used = (resource.getrusage(target) for target in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


@contextmanager
def _watched_workers() -> Iterator[dict[int, float]]:
    """Process id -> peak MiB of a worker, if the system reports it."""
    peaks: dict[int, float] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(POLL_S):
            for worker in multiprocessing.active_children():
                if worker.pid is not None and (peak := process_peak_mb(worker.pid)) is not None:
                    peaks[worker.pid] = peak

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def _index(folder: Path) -> Callable[[], Any]:
    from medcl3d.datasets.sources.bids import bids

    return lambda: bids(folder / "raw")


def _check(folder: Path) -> Callable[[], Any]:
    from medcl3d.quality.check import audit

    return lambda: audit(folder / "raw", report=folder / "checked")


def _prepare(folder: Path) -> Callable[[], Any]:
    from medcl3d.preprocessing.prepare import prepare

    return lambda: prepare("bids", folder / "raw", folder / "store")


def _open(folder: Path) -> Callable[[], Any]:
    from medcl3d.store.store import Store

    return lambda: Store.open(folder / "store")


def _check_store(folder: Path) -> Callable[[], Any]:
    from medcl3d.quality.check import audit

    return lambda: audit(folder / "store")


def configuration_of(root: Path, pairs: Any, patch: list[int], **data: Any) -> dict[str, Any]:
    """A pretraining with a small network, of which only the data matter."""
    return {
        "data": {"root": str(root), "patch_size": patch, **data},
        "pairs": pairs,
        "views": "mri",
        "encoder": {"unet3d": {"channels": [4, 8], "strides": [1, 2]}},
        "objective": "simclr",
        "train": {"steps": 1, "samples_per_step": 8},
        "out_dir": "unused",
    }


def _plan(pairs: str) -> Callable[[Path], Callable[[], Any]]:
    def stage(folder: Path) -> Callable[[], Any]:
        from medcl3d.config.loading import parse
        from medcl3d.pretraining.config import PretrainConfig
        from medcl3d.pretraining.parts import assemble

        config = configuration_of(folder / "store", PAIRS[pairs], [SIDE] * 3)
        parsed = parse(config, PretrainConfig, "benchmark")
        return lambda: assemble(parsed).dataset()[0]

    return stage


STAGES: dict[str, Callable[[Path], Callable[[], Any]]] = {
    "index": _index,
    "check": _check,
    "check again": _check,
    "prepare": _prepare,
    "prepare again": _prepare,
    "open": _open,
    "check the store": _check_store,
    **{f"plan, {name}": _plan(name) for name in PAIRS},
}

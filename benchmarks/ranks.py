"""Programs on several ranks of this machine: a short pretraining, and times of collectives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from medcl3d.config.loading import parse
from medcl3d.distributed.collectives import process_group, rank, world_size
from medcl3d.io.atomic import write_json
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.parts import assemble

ROOT = Path(__file__).resolve().parents[1]
SIZES = (64, 1 << 16, 1 << 22)
"""Bytes that one rank holds."""
REPEATS = 20


def pretraining_rows(ranks: int, config: dict[str, Any], folder: Path) -> list[dict[str, float]]:
    """The logged rows of a pretraining on ranks, without the first. RuntimeError if it fails."""
    folder.mkdir(exist_ok=True)
    run = folder / f"ranks_{ranks}"
    path = folder / f"ranks_{ranks}.yaml"
    path.write_text(json.dumps({**config, "out_dir": str(run)}))  # JSON is YAML
    _launch(ranks, [str(ROOT / "tools" / "pretrain.py"), str(path)])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "data_wait" in row][1:]


def collective_times(ranks: int, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Median seconds of collectives by kind and bytes, and the collectives of a step, on ranks.

    RuntimeError if the program fails.
    """
    path, out = folder / "collectives.json", folder / f"collectives_{ranks}.json"
    path.write_text(json.dumps(config))
    _launch(ranks, ["-m", "benchmarks.ranks", str(path), str(out)])
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def _launch(ranks: int, command: Sequence[str]) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *torchrun, *command], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} on {ranks} ranks failed: {done.stderr[-2000:]}")


def _times(device: torch.device) -> list[tuple[str, int, float]]:
    """Kind, bytes and median seconds of collectives."""
    found = []
    for size in SIZES:
        own = torch.ones(size // 4, device=device)
        every = torch.ones(size // 4 * world_size(), device=device)
        works = {
            "all-gather": partial(dist.all_gather_into_tensor, every, own),
            "reduce-scatter": partial(dist.reduce_scatter_tensor, own, every),
            "all-reduce": partial(dist.all_reduce, own),
        }
        for kind, work in works.items():
            seconds = []
            for _ in range(REPEATS + 2):
                dist.barrier()
                start = time.perf_counter()
                work()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds.append(time.perf_counter() - start)
                own.fill_(1)
                every.fill_(1)
            found.append((kind, size, median(seconds[2:])))
    return found


def main(config: str, out: str) -> None:
    """On one rank: measure, and write the results on rank 0."""
    from tests.pretend.collectives import recorded

    torch.set_num_threads(1)
    with process_group() as device:
        parts = assemble(parse(json.loads(Path(config).read_text()), PretrainConfig, "benchmark"))
        step, _ = recorded(parts, device)
        times = _times(device)
        if rank() == 0:
            write_json(Path(out), {"times": times, "step": [asdict(one) for one in step]})


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Drills of training itself, and of weights that other runs start from."""

from __future__ import annotations

import json
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from medcl3d.training import loop
from tests.drills.drill import Drill
from tests.drills.place import Outcome, Place, command_of
from tests.pretraining.test_pretrain import write


def diverging(place: Place) -> Outcome:
    """Train with a learning rate that is too high."""
    return place.refuse("train.lr=1e30", "train.clip_norm=1e30")


def little_memory(place: Place) -> Outcome:
    """Train with a batch that exceeds the memory that the process may use."""
    return place.refuse("train.samples_per_step=128", before=[limit_memory_of_steps])


def limit_memory_of_steps() -> None:
    """Limit the memory of this process once training begins."""
    build = loop.build_optimizer

    def limited(*arguments: Any, **options: Any) -> Any:
        limit_memory()
        return build(*arguments, **options)

    loop.build_optimizer = limited


def limit_memory() -> None:
    """Let the address space of this process grow by 48 MiB at most."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (48 << 20),) * 2)


def jumping_clock(place: Place) -> Outcome:
    """Set the clock back by a day while the run trains."""
    outcome = place.end(place.start(before=[set_clock_back]))
    rows = [json.loads(line) for line in (place.out / "metrics.jsonl").read_text().splitlines()]
    assert all(row["samples_per_s"] > 0 and 0 <= row["data_wait"] <= 1 for row in rows)
    return outcome


def set_clock_back() -> None:
    """Let the system's time go back by a day after it was read a hundred times."""
    clock, count = time.time, 0

    def read() -> float:
        nonlocal count
        count += 1
        return clock() - 86_400 * (count > 100)

    time.time = read


def transferred(change: Callable[[Path], object], **encoder: object) -> Callable[[Place], Outcome]:
    """Start a fine-tuning from weights that are changed first."""

    def cause(place: Place) -> Outcome:
        source = place.folder / "pre"
        source.mkdir()
        for name in ("encoder.safetensors", "encoder.json"):
            shutil.copy(place.setting.whole / name, source)
        change(source / "encoder.safetensors")
        config = {
            "data": place.config["data"],
            "task": "segmentation",
            "encoder": {"unet3d": {**place.config["encoder"]["unet3d"], **encoder}},
            "train": {"steps": 2, "samples_per_step": 2},
            "init": str(source),
            "out_dir": str(place.out),
        }
        return command_of(["finetune", str(write(place.folder / "f.yaml", config)), "--check"], place)

    return cause


def unchanged(_: Path) -> None:
    """Leave the weights as they are."""


def one_bit(path: Path) -> None:
    """Change one bit in the last tensor."""
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def wrapped(path: Path) -> None:
    """Add the prefixes of DistributedDataParallel and torch.compile to all names."""
    save_file({f"module._orig_mod.{name}": tensor for name, tensor in load_file(path).items()}, path)
    about = json.loads(path.with_suffix(".json").read_text())
    del about["weights_sha256"]
    path.with_suffix(".json").write_text(json.dumps(about))


TRAINING = [
    Drill(
        49,
        "weights of another network",
        transferred(unchanged, channels=[4, 8, 16]),
        [2],
        ["tensors match", "use the same here, or set init: scratch"],
        "not started",
        "-",
    ),
    Drill(
        52,
        "weights with the names of wrappers",
        transferred(wrapped),
        [0],
        ["loaded encoder"],
        "not started",
        "-",
    ),
    Drill(
        53,
        "one bit of the weights changed",
        transferred(one_bit),
        [2],
        ["SHA-256 differs"],
        "not started",
        "-",
    ),
    Drill(
        55,
        "loss without a finite value",
        diverging,
        [3],
        ["training diverged", "lower train.lr"],
        "failed",
        "-",
    ),
    Drill(
        57,
        "memory limit below a batch",
        little_memory,
        [4],
        ["main memory is full", "lower train.samples_per_step"],
        "failed",
        "-",
    ),
    Drill(71, "clock set back by a day", jumping_clock, [0], [], "done"),
]

"""Commands with the contract of `medcl3d pretrain` and `finetune` that learn nothing and take no time.

As a script it is such a command; as a module it gives the types of their configurations. A run's Dice
is known beforehand: 0.5, more with labels, the arm's `gain`, and an offset of the replicate that all arms
share.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from pydantic.dataclasses import dataclass

from medcl3d.config.field_types import STRICT
from medcl3d.config.loading import load
from medcl3d.config.plain import plain


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Train:
    steps: int
    samples_per_step: int = 4
    workers: int = 0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PretrainConfig:
    pairs: dict[str, Any]
    objective: dict[str, Any]
    encoder: str = "small"
    placebo: bool = False
    train: Train
    seed: int = 0
    out_dir: Path


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FinetuneConfig:
    init: str = "scratch"
    transfer: str = "encoder"
    num_labelled: int = 2
    measured_on: str = "test"
    gain: float = 0.0
    fail_at_seed: int = -1
    seconds: float = 0.0
    test_seed: int = 0
    train: Train
    seed: int = 0
    out_dir: Path


def dice_of(config: FinetuneConfig) -> float:
    """The Dice of a fake fine-tuning."""
    return (
        0.5
        + 0.01 * config.num_labelled
        + config.gain
        + 0.02 * config.seed
        + 0.001 * ((config.seed * 7 + len(config.init)) % 5)
    )


def finetune(config: FinetuneConfig) -> None:
    """Write results.json."""
    if config.fail_at_seed == config.seed:
        print("the log begins")
        sys.exit("medcl3d: the scan <b>17</b> is broken; mend it")
    dice = dice_of(config)
    cases = [
        {"scan": f"scan{k}", "patient": f"p{k}", "class": "1", "dice": dice + 0.01 * k} for k in range(-4, 5)
    ]
    split = {
        "labelled": [f"p{config.seed}"] * config.num_labelled,
        "test": [c["patient"] for c in cases],
        "seed": config.test_seed,
    }
    metrics = {
        "dice": {"mean": dice, "low": dice - 0.1, "high": dice + 0.1, "n": len(cases)},
        "hd95_mm": {"mean": 3.0, "low": 2, "high": 4, "n": 9},
    }
    (config.out_dir / "results.json").write_text(
        json.dumps({"metrics": metrics, "cases": cases, "split": split})
    )


def main(command: str, path: str, *overrides: str) -> None:
    """The command line of both."""
    config = load(path, overrides, PretrainConfig if command == "pretrain" else FinetuneConfig)
    folder = config.out_dir
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.yaml"
    before = yaml.safe_load(file.read_text())["train"]["steps"] if file.exists() else config.train.steps
    file.write_text(yaml.safe_dump(plain(config), sort_keys=False))
    provenance = {"data": "abc", "versions": {"torch": "2"}, "python": "3", "commit": "f00"}
    if before != config.train.steps:
        provenance["extended"] = [[before, config.train.steps]]
    (folder / "provenance.json").write_text(json.dumps(provenance))
    (folder / "starts.txt").open("a").write(f"{time.monotonic()} {os.environ.get('OMP_NUM_THREADS')}\n")
    signal.signal(signal.SIGTERM, lambda *_: (_status(folder, "stopped"), os._exit(75)))
    _status(folder, "running")
    if command == "pretrain":
        rows = [
            {"step": step, "loss": 1 / step, "samples_per_s": 8.0}
            for step in range(1, config.train.steps + 1)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "encoder.safetensors").write_text(f"{config.pairs} {config.seed} {config.train.steps}")
    else:
        time.sleep(config.seconds)
        finetune(config)
    _status(folder, "done")


def _status(folder: Path, state: str) -> None:
    (folder / "status.json").write_text(json.dumps({"state": state, "step": 1}))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The online probe is evaluated at the configured steps and does not affect training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from medcl3d.core.errors import ConfigError
from medcl3d.pretraining.online_probe import METRIC
from medcl3d.pretraining.pretrain import pretrain


def config(store: Path, out: Path, **more: object) -> Path:
    path = out.with_suffix(".yaml")
    fields = {
        "data": {"root": str(store), "patch_size": [16, 16, 16], "smaller_than_patch": "pad"},
        "pairs": "overlapping_crops",
        "views": "mri",
        "encoder": {"unet3d": {"channels": [4, 8, 8], "strides": [1, 2, 2]}},
        "objective": "simclr",
        "train": {"steps": 4, "samples_per_step": 4, "log_every": 1, "precision": "float32"},
        "out_dir": str(out),
    }
    path.write_text(yaml.safe_dump(fields | more))
    return path


def probe(every: int = 2, patients: int = 6) -> dict[str, object]:
    return {"task": {"structure_at_centre": {"crops_per_scan": 2}}, "every": every, "patients": patients}


def test_it_is_logged_and_does_not_affect_training(tiny_store: Path, tmp_path: Path) -> None:
    pretrain(config(tiny_store, tmp_path / "without"))
    pretrain(config(tiny_store, tmp_path / "with", probe=probe()))
    rows = [json.loads(line) for line in (tmp_path / "with" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if METRIC in row] == [2, 4]
    assert all(0 <= row[METRIC] <= 1 for row in rows if METRIC in row)
    first, second = (load_file(tmp_path / name / "encoder.safetensors") for name in ("without", "with"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_invalid_probe_is_refused_before_training(tiny_store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"probe\.every = 3 is not a multiple of train\.log_every = 2"):
        train = {"steps": 4, "samples_per_step": 4, "log_every": 2}
        pretrain(config(tiny_store, tmp_path / "every", probe=probe(every=3), train=train), check=True)
    with pytest.raises(ConfigError, match=r"probe\.task = segmentation: has no classes"):
        pretrain(config(tiny_store, tmp_path / "task", probe=probe() | {"task": "segmentation"}), check=True)
    assert not (tmp_path / "every").exists() and not (tmp_path / "task").exists()

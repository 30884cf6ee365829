"""The online probe is evaluated at the configured steps and does not affect training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from medcl3d.config.loading import load
from medcl3d.core.errors import ConfigError
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.embedding_export import FEATURES, SCORES, export_embeddings
from medcl3d.pretraining.online_probe import METRIC, ProbedCrops
from medcl3d.pretraining.parts import assemble
from medcl3d.pretraining.pretrain import pretrain
from medcl3d.training.run_folder import run_folder
from tests.downstream.test_two_ranks import TORCHRUN
from tests.pretraining.test_pretrain import ENVIRONMENT


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


@pytest.mark.slow
def test_two_ranks_share_the_probe_and_the_export_and_find_what_one_process_finds(
    tiny_store: Path, tmp_path: Path
) -> None:
    """With the weights of two ranks, one process gets the same value and the same features to the bit."""
    out = tmp_path / "ranks"
    path = config(tiny_store, out, probe=probe(every=4))
    command = [sys.executable, *TORCHRUN, "-m", "medcl3d", "pretrain", str(path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    parts = assemble(load(path, [], PretrainConfig))
    parts.learner.network.load_state_dict(load_file(out / "encoder.safetensors"))
    crops = ProbedCrops(parts.config.probe, parts.store, parts.config.data, 1)
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    device = torch.device("cpu")
    assert last[METRIC] == crops.measure(parts.learner.network, device, None)[METRIC]
    with run_folder(tmp_path / "alone", {"seed": 0}, {"data": "a"}) as run:
        export_embeddings(parts, run, device)
    with np.load(out / FEATURES) as shared, np.load(tmp_path / "alone" / FEATURES) as alone:
        assert set(shared) == set(alone) and all(np.array_equal(shared[name], alone[name]) for name in alone)
    scores = [(folder / SCORES).read_text() for folder in (out, tmp_path / "alone")]
    assert scores[0] == scores[1]


def test_an_invalid_probe_is_refused_before_training(tiny_store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"probe\.every = 3 is not a multiple of train\.log_every = 2"):
        train = {"steps": 4, "samples_per_step": 4, "log_every": 2}
        pretrain(config(tiny_store, tmp_path / "every", probe=probe(every=3), train=train), check=True)
    with pytest.raises(ConfigError, match=r"probe\.task = segmentation: has no classes"):
        pretrain(config(tiny_store, tmp_path / "task", probe=probe() | {"task": "segmentation"}), check=True)
    assert not (tmp_path / "every").exists() and not (tmp_path / "task").exists()

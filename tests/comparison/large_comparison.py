"""A finished comparison of four arms, ten replicates and two label counts with pictures, made of numbers and not of runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from skimage.io import imsave

from medcl3d.comparison import compare
from medcl3d.comparison.launch import INPUTS, encoder_hash, note_cost
from medcl3d.comparison.plan import MODELS, CompareConfig, Run, plan
from medcl3d.config import load, plain
from medcl3d.data.atomic import write_json
from medcl3d.evaluation.label_free import label_free
from medcl3d.training.portrait import FEATURES, SCORES

GAINS = {"scratch": 0.0, "overlapping crops": 0.015, "same point, encoder": 0.04, "same point, all": 0.05}
NUM_CASES = 30
CONFIG = {
    "out_dir": "runs",
    "pretrainings": {"overlap": {"config": "overlap.yaml"}, "dense": {"config": "dense.yaml"}},
    "finetune": {"config": "finetune.yaml"},
    "arms": {
        "scratch": {},
        "same point, all": {"pretraining": "dense", "set": {"transfer": "all"}},
        "same point, encoder": {"pretraining": "dense"},
        "overlapping crops": {"pretraining": "overlap"},
    },
    "family": ["overlapping crops", "same point, encoder"],
    "vary": {"num_labelled": [2, 8, 32]},
    "controls": [],
    "replicates": 10,
    "reference": "scratch",
}


def written(folder: Path) -> Path:
    """Write the runs below `folder` and report on them; returns the report's path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command, name in (("pretrain", "PretrainConfig"), ("finetune", "FinetuneConfig")):
            patch.setitem(MODELS, command, f"tests.comparison.fake_runs:{name}")
        for name, pairs, objective in (("overlap", "overlapping_crops", "simclr"), ("dense", "voxel_correspondence", "dense")):
            content = {"pairs": {pairs: {}}, "objective": {objective: {}}, "train": {"steps": 200}, "out_dir": "x"}
            Path(f"{name}.yaml").write_text(yaml.safe_dump(content))
        Path("finetune.yaml").write_text(yaml.safe_dump({"train": {"steps": 100}, "out_dir": "x"}))
        Path("compare.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
        config = load("compare.yaml", (), CompareConfig)
        runs = plan(config)
        rng = np.random.default_rng(11)
        of_case = {arm: gain + rng.normal(0, 0.02, NUM_CASES) for arm, gain in GAINS.items()}
        hard = rng.normal(0, 0.06, NUM_CASES)
        for run in runs:
            _run(run, rng, of_case.get(run.name, hard) + hard)
        return compare(Path("compare.yaml")).absolute()


def _run(run: Run, rng: np.random.Generator, of_case: np.ndarray) -> None:
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(yaml.safe_dump(plain(dict(run.planned))))
    provenance = {"data": "5f2d" * 16, "versions": {"torch": "2.13.0"}, "python": "3.11", "commit": "f00"}
    write_json(run.folder / "provenance.json", provenance)
    write_json(run.folder / "status.json", {"state": "done", "step": run.steps})
    note_cost(run.folder, run.steps * 0.8 * rng.uniform(0.9, 1.1), 900 + 100 * rng.uniform())
    steps = np.arange(10, run.steps + 1, 10)
    losses = 0.4 + 3 / np.sqrt(steps) + rng.normal(0, 0.02, len(steps))
    rows = [{"step": int(s), "loss": float(v), "samples_per_s": 5.0} for s, v in zip(steps, losses, strict=True)]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run.folder / "pictures").mkdir()
    for name in ("cases",) if run.measures else ("pairs", "relation"):
        image = (255 * rng.uniform(size=(120, 240, 3))).astype(np.uint8)
        imsave(run.folder / "pictures" / f"{name}.png", image, check_contrast=False)
    if not run.measures:
        (run.folder / "encoder.safetensors").write_text(str(run))
        features = rng.normal(size=(64, 8)).astype(np.float32)
        scores = label_free(features, features + rng.normal(0, 0.1, features.shape))
        write_json(run.folder / SCORES, {"schema": 1, "crops": 64, "scores": scores})
        text = {"patient": [f"p{k % 12:03}" for k in range(64)], "age": [f"{50 + k % 20}.5" for k in range(64)], "scan": ["s"] * 64}
        np.savez(run.folder / FEATURES, features=features, **{name: np.array(values) for name, values in text.items()})
        return
    if run.needs is not None:
        write_json(run.folder / INPUTS, {"encoder_sha256": encoder_hash(run.needs)})
    labels = dict(run.cell)["num_labelled"]
    values = 0.6 + 0.05 * np.log2(labels) / 2 + of_case + rng.normal(0, 0.01) + rng.normal(0, 0.02, NUM_CASES)
    patients = [f"p{k:03}" for k in range(NUM_CASES)]
    cases = [{"scan": f"{p}_a", "patient": p, "class": "liver", "dice": float(v)} for p, v in zip(patients, values, strict=True)]
    split = {"labelled": [f"t{run.seed}_{k}" for k in range(labels)], "test": patients}
    metrics = {"dice": {"mean": float(values.mean()), "low": None, "high": None, "n": NUM_CASES}}
    write_json(run.folder / "results.json", {"metrics": metrics, "cases": cases, "split": split})

"""Simulated comparisons with pictures: four arms with ten replicates, and a screening of ten arms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from skimage.io import imsave

from medcl3d.comparison.compare import compare
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.runs import Run, plan
from medcl3d.comparison.run.launch import INPUTS, encoder_hash, record_cost
from medcl3d.config.kinds import CONFIGS
from medcl3d.config.loading import load
from medcl3d.config.plain import plain
from medcl3d.evaluation.metrics.label_free import label_free
from medcl3d.io.atomic import write_json
from medcl3d.pretraining.embedding_export import FEATURES, SCORES

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
SCREENING = {
    "out_dir": "runs",
    "stage": "screen",
    "pretrainings": {
        "views": {"config": "overlap.yaml"},
        "overlap": {"config": "overlap.yaml"},
        "slices": {"config": "overlap.yaml"},
        "voxels": {"config": "dense.yaml"},
        "body": {"config": "dense.yaml"},
        "body_placebo": {"config": "dense.yaml", "set": {"placebo": True}},
        "mae": {"config": "mae.yaml"},
    },
    "finetune": {"config": "finetune.yaml", "set": {"measured_on": "validation"}},
    "arms": {
        "scratch": {},
        "augmented_views": {"pretraining": "views"},
        "overlapping_crops": {"pretraining": "overlap"},
        "slice_position": {"pretraining": "slices"},
        "voxel_correspondence": {"pretraining": "voxels"},
        "voxel_correspondence, all": {"pretraining": "voxels", "set": {"transfer": "all"}},
        "body_position": {"pretraining": "body"},
        "body_position, all": {"pretraining": "body", "set": {"transfer": "all"}},
        "body_position (placebo)": {"pretraining": "body_placebo"},
        "mae": {"pretraining": "mae"},
    },
    "vary": {"num_labelled": [2, 8]},
    "controls": [],
    "replicates": 3,
    "reference": "scratch",
}
"""As in the hippocampus comparison; the last replicate lacks runs."""
GAINS = {
    "overlapping crops": 0.015, "same point, encoder": 0.04, "same point, all": 0.05,
    "slice_position": 0.02, "body_position": 0.04, "mae": -0.01,
}  # fmt: skip
"""Arm -> gain in the metric."""
FAILED = "DataError: the scan <b>17</b> is broken"


def written(folder: Path, content: dict[str, Any] = CONFIG) -> Path:
    """Write the runs below `folder` and report on them; returns the report's path.

    Of the screening's last replicate, one fine-tuning failed and the others do not exist.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command, name in (("pretrain", "PretrainConfig"), ("finetune", "FinetuneConfig")):
            patch.setitem(CONFIGS, command, f"tests.comparison.fake_runs:{name}")
        recipes = (
            ("overlap", "overlapping_crops", "simclr"),
            ("dense", "voxel_correspondence", "dense"),
            ("mae", "whole", "mae"),
        )
        for name, pairs, objective in recipes:
            recipe = {
                "pairs": {pairs: {}},
                "objective": {objective: {}},
                "train": {"steps": 200},
                "out_dir": "x",
            }
            Path(f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        Path("finetune.yaml").write_text(yaml.safe_dump({"train": {"steps": 100}, "out_dir": "x"}))
        Path("compare.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        config = load("compare.yaml", (), CompareConfig)
        runs = plan(config)
        rng = np.random.default_rng(11)
        of_case = {arm: GAINS.get(arm, 0.0) + rng.normal(0, 0.02, NUM_CASES) for arm in config.arms}
        hard = rng.normal(0, 0.06, NUM_CASES)
        late = [run for run in runs if content is SCREENING and run.measures and run.seed == 2]
        for run in runs:
            if run not in late:
                _run(run, rng, of_case.get(run.name, 0.0) + hard)
        if not late:
            return compare(Path("compare.yaml")).absolute()
        late[0].folder.mkdir(parents=True)
        (late[0].folder / "config.yaml").write_text(yaml.safe_dump(plain(dict(late[0].planned))))
        write_json(late[0].folder / "status.json", {"state": "failed", "step": 3, "reason": FAILED})
        return compare(Path("compare.yaml"), from_runs=[Path("runs")]).absolute()


def _run(run: Run, rng: np.random.Generator, of_case: np.ndarray) -> None:
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(yaml.safe_dump(plain(dict(run.planned))))
    commit = "f00d" if run.seed else "cafe"
    provenance = {
        "data": "5f2d" * 16,
        "versions": {"torch": "2.13.0"},
        "python": "3.11",
        "commit": commit,
        "device": "a processor",
    }
    write_json(run.folder / "provenance.json", provenance)
    write_json(run.folder / "status.json", {"state": "done", "step": run.steps})
    record_cost(run.folder, run.steps * 0.8 * rng.uniform(0.9, 1.1), 900 + 100 * rng.uniform())
    steps = np.arange(10, run.steps + 1, 10)
    losses = 0.4 + 3 / np.sqrt(steps) + rng.normal(0, 0.02, len(steps))
    rows = [
        {"step": int(s), "loss": float(v), "samples_per_s": 5.0} for s, v in zip(steps, losses, strict=True)
    ]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run.folder / "pictures").mkdir()
    for name in ("cases",) if run.measures else ("pairs", "relation"):
        # As many pixels as real pictures, in small files; strategies that draw by one rule share their views.
        tint = sum(map(ord, str(run.planned.get("pairs") if name == "pairs" else run))) % 256
        image = np.full((544, 1485, 3), tint, dtype=np.uint8)
        imsave(run.folder / "pictures" / f"{name}.png", image, check_contrast=False)
    if not run.measures:
        (run.folder / "encoder.safetensors").write_text(str(run))
        features = rng.normal(size=(64, 8)).astype(np.float32)
        scores = label_free(features, features + rng.normal(0, 0.1, features.shape))
        write_json(run.folder / SCORES, {"schema": 1, "crops": 64, "scores": scores})
        text = {
            "patient": [f"p{k % 12:03}" for k in range(64)],
            "age": [f"{50 + k % 20}.5" for k in range(64)],
            "scan": ["s"] * 64,
        }
        np.savez(
            run.folder / FEATURES,
            features=features,
            **{name: np.array(values) for name, values in text.items()},
        )
        return
    if run.needs is not None:
        write_json(run.folder / INPUTS, {"encoder_sha256": encoder_hash(run.needs)})
    labels = dict(run.cell)["num_labelled"]
    values = 0.6 + 0.05 * np.log2(labels) / 2 + of_case + rng.normal(0, 0.01) + rng.normal(0, 0.02, NUM_CASES)
    patients = [f"p{k:03}" for k in range(NUM_CASES)]
    cases = [
        {"scan": f"{p}_a", "patient": p, "class": "liver", "dice": float(v)}
        for p, v in zip(patients, values, strict=True)
    ]
    split = {"labelled": [f"t{run.seed}_{k}" for k in range(labels)], "test": patients}
    metrics = {"dice": {"mean": float(values.mean()), "low": None, "high": None, "n": NUM_CASES}}
    write_json(run.folder / "results.json", {"metrics": metrics, "cases": cases, "split": split})

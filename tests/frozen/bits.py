"""Record the exact results of short runs, to show that a refactoring changes none of them.

``python tests/frozen/bits.py WORK_DIR OUT.json`` prepares two stores, pretrains six encoders, fine-tunes and
evaluates one, all
with the ``medcl3d`` package on the path, and writes every loss and every hash. Compare two such files made on
one machine
with one thread setting: ``python tests/frozen/bits.py --compare BEFORE.json AFTER.json``. Floating-point
results differ between
machines, so the files are not kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data" / "ixi40"
TRAIN = {
    "steps": 3,
    "samples_per_step": 4,
    "warmup_steps": 1,
    "lr": 1e-3,
    "log_every": 1,
    "precision": "float32",
    "workers": 0,
}
HEAD = {"hidden_dim": 16, "out_dim": 8}
RESNET = {"resnet3d": {"depth": 10, "width": 0.25, "stem_kernel": 3}}
UNET = {"unet3d": {"channels": [4, 8, 16], "strides": [1, 2, 2]}}
RUNS: dict[str, dict[str, Any]] = {
    "unet3d_simclr": {"pairs": "overlapping_crops", "encoder": UNET, "objective": {"simclr": HEAD}},
    "unet3d_byol_two_ranks": {
        "pairs": "multi_crop",
        "encoder": UNET,
        "objective": "byol",
        "ranks": 2,
        "patch": 32,
    },
    "swin3d_vicreg": {
        "pairs": {"same_patient": {}},
        "encoder": {"swin3d": {"feature_size": 12, "num_layers": [1, 1, 1, 1], "window_size": [4, 4, 4]}},
        "objective": "vicreg",
        "patch": 32,
    },
    "vit3d_mae_contrastive": {
        "pairs": "augmented_views",
        "encoder": {"vit3d": {"hidden_size": 48, "num_layers": 2}},
        "objective": "mae_contrastive",
    },
    "unet3d_global_dense": {"pairs": "voxel_correspondence", "encoder": UNET, "objective": "global_dense"},
    "resnet3d_moco": {"pairs": "body_position", "encoder": RESNET, "objective": "moco", "patch": 32},
}


def record(work: Path, out: Path) -> None:
    """Run everything below `work`, which must be empty, and write the results to `out`."""
    work.mkdir(parents=True)
    results: dict[str, Any] = {}
    command(work, "prepare", "simulated", "-", "--out", "simulated", "num_patients=8", "shape=[40,40,40]")
    results["store simulated"] = store_hashes(work / "simulated")
    if REAL.is_dir():
        command(work, "prepare", "bids", str(REAL), "--out", "ixi", "spacing_mm=[6,6,6]")
        results["store ixi40"] = store_hashes(work / "ixi")
    for name, parts in RUNS.items():
        results[name] = pretrained(work, name, dict(parts))
    segmentation = {
        "data": {"root": "simulated", "patch_size": [16, 16, 16]},
        "init": "unet3d_simclr",
        "task": {"segmentation": {}},
        "num_labelled": 2,
        "views": "mri",
        "encoder": UNET,
        "train": {**TRAIN, "samples_per_step": 2},
        "out_dir": "finetuned",
    }
    run_configuration(work, "finetune", "finetuned", segmentation)
    frozen = {
        "data": {"root": "simulated", "patch_size": [16, 16, 16]},
        "init": "unet3d_simclr",
        "task": {"structure_at_centre": {"structures": 3, "crops_per_scan": 8}},
        "num_labelled": 4,
        "linear": {},
        "knn": {"k": 3},
        "encoder": UNET,
        "out_dir": "evaluated",
    }
    run_configuration(work, "evaluate", "evaluated", frozen)
    for run in ("finetuned", "evaluated"):
        results[run] = measured(json.loads((work / run / "results.json").read_text()))
    out.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


def pretrained(work: Path, name: str, parts: dict[str, Any]) -> dict[str, Any]:
    """Losses of one short pretraining and the hash of its weights."""
    ranks, patch = parts.pop("ranks", 1), parts.pop("patch", 16)
    data = {"root": "simulated", "patch_size": [patch] * 3, "smaller_than_patch": "pad"}
    run_configuration(
        work,
        "pretrain",
        name,
        {"data": data, "views": "mri", **parts, "train": TRAIN, "out_dir": name},
        ranks,
    )
    steps = [json.loads(line) for line in (work / name / "metrics.jsonl").read_text().splitlines()]
    return {
        "losses": [step["loss"] for step in steps if "loss" in step],
        "gradient_norms": [step["gradient_norm"] for step in steps if "gradient_norm" in step],
        "encoder": sha256(work / name / "encoder.safetensors"),
    }


def run_configuration(work: Path, name: str, run: str, configuration: dict[str, Any], ranks: int = 1) -> None:
    """Write a configuration and run a command on it."""
    path = work / f"{run}.yaml"
    path.write_text(yaml.safe_dump(configuration))
    command(work, name, str(path), ranks=ranks)


def command(work: Path, *arguments: str, ranks: int = 1) -> None:
    """Run one ``medcl3d`` command in `work`."""
    launcher = [sys.executable, "-m"]
    if ranks > 1:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, "medcl3d", *arguments],
        cwd=work,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(f"medcl3d {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout[-3000:]}")


def store_hashes(store: Path) -> dict[str, str]:
    """Hash of every array, table and split of a store."""
    kept = [
        path
        for path in sorted(store.rglob("*"))
        if path.suffix in (".npy", ".csv", ".yaml") or path.name == "split.json"
    ]
    return {
        path.relative_to(store).as_posix(): sha256(path)
        for path in kept
        if "source" not in path.parts and path.is_file()
    }


def measured(results: dict[str, Any]) -> dict[str, Any]:
    """The measured part of a results.json: no times, no versions, no paths."""
    return {
        key: value
        for key, value in results.items()
        if key in ("metrics", "cases", "test", "validation", "intervals", "details")
    }


def sha256(path: Path) -> str:
    """Hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def compare(before: Path, after: Path) -> int:
    """Print one line per recorded result; 1 if any differs."""
    old, new = json.loads(before.read_text()), json.loads(after.read_text())
    for name in sorted({*old, *new}):
        print(f"{'equal' if old.get(name) == new.get(name) else 'DIFFERENT'}  {name}")
    return int(old != new)


if __name__ == "__main__":
    if sys.argv[1] == "--compare":
        sys.exit(compare(Path(sys.argv[2]), Path(sys.argv[3])))
    record(Path(sys.argv[1]), Path(sys.argv[2]))

"""Configurations for a table of scans: pretraining, fine-tuning, evaluation and comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from medcl3d.preprocessing.intensity_kind import kind_of
from medcl3d.proposal.measure import Measure, choose_strategies
from medcl3d.proposal.sizes import Machine, Sizes

REPLICATES = 2  # first: docs/howto/compare.md, "The plan"


@dataclass(frozen=True)
class Plan:
    """What configurations are made for.

    folder   of the configurations, the store and the runs
    table    columns of a manifest, as text
    measure  None: no encoder can be measured
    """

    folder: Path
    table: pd.DataFrame
    sizes: Sizes
    machine: Machine
    measure: Measure | None


def configurations(plan: Plan) -> dict[str, str]:
    """Name of a file -> its text. No comparison or evaluation without a measure."""
    made = {"pretrain.yaml": _pretrain(plan)}
    if plan.measure is None:
        return made
    if plan.measure.command == "finetune":
        made["finetune.yaml"] = _finetune(plan, plan.measure)
    return {
        **made,
        "evaluate.yaml": _evaluate(plan, plan.measure),
        "compare.yaml": _compare(plan, plan.measure),
    }


def _pretrain(plan: Plan) -> str:
    sizes, first = plan.sizes, next(iter(choose_strategies(plan.table).values()))
    size = " x ".join(map(str, sizes.patch_mm))
    num_patients = plan.table["patient"].nunique()
    return _text(
        f"Pretraining on {len(plan.table)} scans of {num_patients} patients, for {_device(plan.machine)}.",
        f"A patch shows about {size} mm (right, front, head). `medcl3d pretrain FILE --check`",
        "estimates the memory.",
        content={
            "data": _data(plan),
            "pairs": first["pairs"],
            "views": _views(plan),
            "encoder": _encoder(plan),
            "objective": first["objective"],
            "train": {
                "steps": sizes.steps,
                "samples_per_step": sizes.samples,
                "lr": first["lr"],
                "warmup_steps": max(10, sizes.steps // 20),
                "workers": 8 if plan.machine.gpu_bytes else 0,
            },
            "out_dir": str(plan.folder / "runs/pretrain"),
            "seed": 0,
        },
    )


def _finetune(plan: Plan, measure: Measure) -> str:
    steps = plan.sizes.finetune_steps
    return _text(
        f"Segmentation with label maps of {max(measure.labelled)} training patients.",
        "init=scratch is the control.",
        content={
            "data": _data(plan),
            "init": str(plan.folder / "runs/pretrain"),
            "transfer": "all",
            "task": {"segmentation": {}},
            "num_labelled": max(measure.labelled),
            "views": _views(plan),
            "encoder": _encoder(plan),
            "train": {
                "steps": steps,
                "samples_per_step": 4,
                "lr": 1e-3,
                "warmup_steps": max(10, steps // 20),
            },
            "out_dir": str(plan.folder / "runs/finetune"),
            "seed": 0,
        },
    )


def _evaluate(plan: Plan, measure: Measure) -> str:
    what = (
        measure.reason
        if measure.command == "evaluate"
        else "which structure a voxel belongs to, by a linear probe"
    )
    return _text(
        f"Evaluation of the frozen encoder: {what}.",
        "init=scratch, an untrained encoder, is the control.",
        content={
            "data": _data(plan),
            "init": str(plan.folder / "runs/pretrain"),
            **measure.probes,
            **({"num_labelled": max(measure.labelled)} if measure.labelled else {}),
            "encoder": _encoder(plan),
            "out_dir": str(plan.folder / "runs/evaluate"),
            "seed": 0,
        },
    )


def _compare(plan: Plan, measure: Measure) -> str:
    config, arms = {"config": str(plan.folder / "pretrain.yaml")}, choose_strategies(plan.table)
    first = next(iter(arms))
    pretrainings: dict[str, Any] = {}
    for name, arm in arms.items():
        own = {"pairs": arm["pairs"], "objective": arm["objective"], "train.lr": arm["lr"]}
        pretrainings[name] = config if name == first else {**config, "set": own}
    recipe: dict[str, Any] = {"config": str(plan.folder / f"{measure.command}.yaml")}
    if measure.command == "finetune":
        recipe["set"] = {"transfer": "encoder"}  # not every pretraining trains a decoder
    control = "scratch" if measure.command == "finetune" else "untrained"
    return _text(
        f"Comparison of pairs. Metric: {measure.reason}.",
        "Controls are added (docs/howto/compare.md). --check reports the runs, and the time after some.",
        "Two replicates estimate time and variance. Then set replicates: 10, and only missing runs start;",
        "fewer than six are not tested.",
        content={
            "out_dir": str(plan.folder / "runs/compare"),
            "pretrainings": pretrainings,
            "may_differ": ["train.lr"],
            measure.command: recipe,
            "arms": {control: {}} | {name: {"pretraining": name} for name in arms},
            **({"vary": {"num_labelled": list(measure.labelled)}} if len(measure.labelled) > 1 else {}),
            "metric": measure.metric,
            "reference": control,
            "replicates": REPLICATES,
        },
    )


def _data(plan: Plan) -> dict[str, Any]:
    size = list(plan.sizes.patch_size)
    return {"root": str(plan.folder / "data"), "patch_size": size, "smaller_than_patch": "pad"}


def _views(plan: Plan) -> dict[str, Any]:
    """The recipe of the kind of all scans, mri if they have several; without flips, which exchange sides."""
    kinds = {kind_of(text or "unknown") for text in plan.table.get("modality", pd.Series("unknown"))}
    name = {"ct": "ct", "none": "shape"}.get(kinds.pop(), "mri") if len(kinds) == 1 else "mri"
    return {name: {"flip_probability": [0, 0, 0]}}


def _encoder(plan: Plan) -> dict[str, Any]:
    return {"unet3d": {"channels": list(plan.sizes.channels), "strides": plan.sizes.strides}}


def _device(machine: Machine) -> str:
    if not machine.gpu_bytes:
        return "a CPU"
    return f"a GPU ({machine.name}, {machine.gpu_bytes / 2**30:.0f} GiB)"


def _text(*comments: str, content: Mapping[str, Any]) -> str:
    body = yaml.safe_dump(
        dict(content), sort_keys=False, default_flow_style=None, allow_unicode=True, width=100
    )
    return "".join(f"# {line}\n" for line in comments) + body

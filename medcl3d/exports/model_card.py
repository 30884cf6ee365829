"""The model card of a finished run: data, training, metrics, licences and limits, without ids of patients."""

from __future__ import annotations

import json
from collections.abc import Iterable
from math import isfinite

import yaml

from medcl3d.downstream.run_weights import SCRATCH
from medcl3d.exports.source import Source
from medcl3d.io.json_file import read_record
from medcl3d.training.run_folder import metrics_row
from medcl3d.training.trackers import METRIC_GROUPS

OF_THE_MACHINE = METRIC_GROUPS["speed"]
LIMITS = """- Research software, not validated for clinical use.
- Results may be wrong for scans of another modality, voxel size, body part or population.
- Weights can hold information on the training scans. Share them only if the licence of the data allows it.
- Missing here: the source of the scans, its licence, the population. Add them before you share this."""


def model_card(source: Source) -> str:
    """The content of README.md, with the metadata that the Hub reads."""
    front = {"library_name": "medcl3d", "license": source.licence.lower(), "tags": ["medical-imaging", "3d"]}
    what = f"Fine-tuned network for {source.task}" if source.task else "Pretrained encoder"
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=True)}---",
        f"# {what}: {source.encoder_name}",
        _section("Data", _data(source)),
        _section("Training", _training(source)),
        _section("Metrics" if source.task else "Metrics of the last step", _metrics(source)),
        _section("Licences", [f"weights: {source.licence}", "medcl3d, which loads them: Apache-2.0"]),
        f"## Limits\n\n{LIMITS}",
        "## Use\n\n```python\nfrom medcl3d.exports.hub_model import HubModel\n\n"
        f'model = HubModel.from_pretrained("FOLDER").eval()  # crops {source.in_channels} x '
        f"{' x '.join(map(str, source.patch_size))}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _section(title: str, lines: Iterable[str]) -> str:
    return "\n".join([f"## {title}", "", *(f"- {line}" for line in lines)])


def _data(source: Source) -> list[str]:
    sidecar = source.sidecar
    patients = sidecar.get("training_patients" if source.task else "pretraining_patients")
    spacing = " x ".join(f"{mm:.3g}" for mm in sidecar["spacing_mm"])
    lines = [f"training patients: {len(patients)}"] if isinstance(patients, list) else []
    lines += [f"scans: {len(sidecar['pretraining_content'])}"] if "pretraining_content" in sidecar else []
    lines.append(f"intensities of kind {sidecar['intensity']['kind']}; channels: {source.in_channels}")
    lines.append(f"axes {sidecar.get('axes', 'RAS')}, voxels of {spacing} mm (median)")
    if source.task:
        lines.append(f"labels: {', '.join(sidecar['label_names'].values())}")
    return lines


def _training(source: Source) -> list[str]:
    sidecar = source.sidecar
    lines = [f"encoder: `{json.dumps(sidecar['architecture'])}`"]
    for name, value in sidecar.get("pretraining", {}).items():
        lines.append(f"{name}: `{json.dumps(value)}`")
    if "step" in sidecar:
        lines.append(f"steps: {sidecar['step']}")
    if source.task:
        lines.append(f"task: `{json.dumps(sidecar['task'])}`")
        start = "from scratch" if sidecar.get("init") == SCRATCH else "from a pretrained encoder"
        lines.append(f"initial weights: {start}")
    return lines


def _metrics(source: Source) -> list[str]:
    if source.task:
        found = read_record(source.run / "results.json").get("metrics", {})
        lines = [f"{name}: {_with_interval(one)}" for name, one in found.items() if one["mean"] is not None]
        return lines or ["none recorded"]
    file = source.run / "metrics.jsonl"
    rows = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    last = metrics_row(rows[-1]) if rows else {}
    kept = {name: value for name, value in last.items() if isfinite(value) and name not in OF_THE_MACHINE}
    return [f"{name}: {value:.4g}" for name, value in kept.items()] or ["none recorded"]


def _with_interval(metric: dict[str, float | None]) -> str:
    interval = ""
    if metric["low"] is not None and metric["high"] is not None:
        interval = f" (95% interval {metric['low']:.4g} to {metric['high']:.4g})"
    return f"{metric['mean']:.4g}{interval}, test patients: {metric['n']}"

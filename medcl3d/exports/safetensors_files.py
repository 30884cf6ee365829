"""Weights and a JSON sidecar without patients, which medcl3d reads like a run folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

from medcl3d.exports.source import Source, file_content
from medcl3d.io.atomic import write_json
from medcl3d.training.run_folder import WEIGHTS_HASH


def write(source: Source, out: Path) -> list[str]:
    """Write encoder.safetensors and encoder.json, or model.safetensors and model.json of a fine-tuning."""
    name = "model" if source.task else "encoder"
    content = file_content(source.tensors)
    (out / f"{name}.safetensors").write_bytes(content)
    write_json(out / f"{name}.json", {WEIGHTS_HASH: hashlib.sha256(content).hexdigest(), **source.public})
    return [f"{len(source.tensors)} tensors; patients are not listed"]

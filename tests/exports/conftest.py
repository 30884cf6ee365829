"""Run folders of small networks with random weights, made without training."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic.dataclasses import dataclass
from torch import nn

from medcl3d.config.choices import choice_of
from medcl3d.config.field_types import STRICT
from medcl3d.config.loading import parse
from medcl3d.config.plain import plain
from medcl3d.downstream.heads import Segmenter
from medcl3d.encoders import ENCODERS
from medcl3d.encoders.network import build_network
from medcl3d.exports.source import file_content

FROZEN = Path(__file__).parents[1] / "frozen" / "v0_1"
ENCODER = json.loads((FROZEN / "pretrain" / "encoder.json").read_text())
MODEL = json.loads((FROZEN / "finetune" / "model.json").read_text())
SMALL: dict[str, dict[str, Any]] = {
    "unet3d": {
        "channels": [4, 6, 8], "strides": [1, [1, 2, 2], 2], "residual": False, "norm": "instance",
    },
    "resnet3d": {"depth": 10, "width": 0.125, "norm": "batch", "stem_kernel": 3},
    "vit3d": {"patch": [8, 4, 8], "hidden_size": 12, "num_layers": 2},
    "swin3d": {"feature_size": 12, "num_heads": [1, 2, 2, 3], "window_size": [4, 4, 4]},
}  # fmt: skip
RunMaker = Callable[..., Path]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Described:
    encoder: choice_of(ENCODERS)  # type: ignore[valid-type]


@pytest.fixture
def make_run(tmp_path: Path) -> RunMaker:
    """Write the run folder of an encoder; with `segments`, of a segmentation with two classes."""

    def make(name: str, segments: bool = False, decoder: bool = False, **fields: Any) -> Path:
        torch.manual_seed(0)
        choice = parse({"encoder": {name: {**SMALL[name], **fields}}}, Described, "test").encoder
        network = build_network(choice, 1, decoder=decoder or segments)
        model: nn.Module = Segmenter(network, 3) if segments else network
        with torch.no_grad():  # so that no norm is without effect
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
            if segments:
                model.head.bias.zero_()  # so that no class prevails
        folder = tmp_path / "run"
        folder.mkdir()
        sidecar = copy.deepcopy(MODEL if segments else ENCODER)
        sidecar |= {"architecture": plain(choice), "patch_size": [32, 32, 32], "spacing_mm": [1.0, 1.5, 2.0]}
        content = file_content(model.state_dict())
        sidecar["weights_sha256"] = hashlib.sha256(content).hexdigest()
        if segments:
            sidecar["task"]["segmentation"]["classes"] = [2, 4]
        else:
            sidecar["decoder"] = decoder
        stem = "model" if segments else "encoder"
        (folder / f"{stem}.safetensors").write_bytes(content)
        (folder / f"{stem}.json").write_text(json.dumps(sidecar))
        return folder

    return make

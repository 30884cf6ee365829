"""The page of encoders: its presets build and have the given parameters and operations."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from medcl3d.config.field_types import Choice
from medcl3d.encoders import ENCODERS
from medcl3d.encoders.network import build_network, check_patch_size, forward_flops
from medcl3d.training.options import FitOptions

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "encoders.md").read_text(encoding="utf-8")
PRESETS = re.findall(r"^\| ([^|]+) \| `(\w+): (\{.*\})` \| ([0-9.]+) \| ([0-9.]+) \|$", PAGE, re.MULTILINE)


@pytest.fixture(autouse=True)
def without_drawing_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip random initialisation: weights are not used, and drawing a hundred million takes seconds."""
    for name in ("trunc_normal_", "kaiming_normal_", "kaiming_uniform_", "uniform_", "normal_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)


@pytest.mark.parametrize(
    ("title", "name", "fields", "millions", "gflop"), PRESETS, ids=[row[0] for row in PRESETS]
)
def test_a_preset_has_the_parameters_and_operations_of_the_page(
    title: str, name: str, fields: str, millions: str, gflop: str
) -> None:
    checked = ENCODERS.schema(name).validate_json(json.dumps(yaml.safe_load(fields))).model_dump()
    network = build_network(Choice(name, checked), 1, decoder=False)
    check_patch_size(network, (96, 96, 96))
    assert f"{sum(p.numel() for p in network.encoder.parameters()) / 1e6:.2f}" == millions, title
    assert f"{forward_flops(network, 1, (96, 96, 96)) / 1e9:.1f}" == gflop, title


def test_every_encoder_has_a_preset_and_every_field_exists() -> None:
    assert {name for _, name, *_ in PRESETS} == set(ENCODERS.names())
    for field in re.findall(r"^\| `(\w+): \w+` \|", PAGE, re.MULTILINE):
        assert field in FitOptions.__dataclass_fields__


def test_the_residual_encoder_of_nnunet_has_its_shape() -> None:
    fields = next(yaml.safe_load(fields) for title, _, fields, *_ in PRESETS if title == "nnU-Net ResEnc")
    checked = ENCODERS.schema("unet3d").validate_json(json.dumps(fields)).model_dump()
    encoder = build_network(Choice("unet3d", checked), 1, decoder=False).encoder
    assert encoder.channels == (32, 64, 128, 256, 320, 320)
    assert encoder.strides == tuple((s, s, s) for s in (1, 2, 4, 8, 16, 32))
    assert [len(stage) for stage in encoder.stages] == [1, 3, 4, 6, 6, 6]  # type: ignore[arg-type, union-attr]

"""A wrong field of each configuration: the error has field and value, and the message names file and line."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from medcl3d.config.field_types import Choice
from medcl3d.config.kinds import CONFIGS
from medcl3d.config.loading import load, locate
from medcl3d.core.errors import ConfigError, inside
from medcl3d.encoders.network import build_network
from medcl3d.pairs import PAIRS

WRONG: dict[str, tuple[dict[str, Any], str, Any]] = {
    "pretrain": (
        {
            "data": {"root": "x"},
            "pairs": {"sum": {"parts": ["same_patient", {"overlapping_crops": {"min_iou": 2}}]}},
        },
        "pairs.sum.parts.1.overlapping_crops.min_iou",
        2,
    ),
    "finetune": (
        {
            "data": {"root": "x"},
            "init": "scratch",
            "encoder": "resnet3d",
            "task": {"classification": {"target": "sex"}},
            "train": {"steps": 9, "samples_per_step": 2, "momentum": 0.5, "optimizer": "adamw"},
        },
        "train.momentum",
        0.5,
    ),
    "evaluate": (
        {"data": {"root": "x", "patch_size": [8, 8, 0]}, "init": "scratch"},
        "data.patch_size.2",
        0,
    ),
    "compare": ({"arms": {"a": {"pretraining": 3}}, "reference": "a"}, "arms.a.pretraining", 3),
}


def line_of(text: str, key: str) -> int:
    return 1 + next(number for number, line in enumerate(text.split("\n")) if f"{key}:" in line)


@pytest.mark.parametrize("command", sorted(CONFIGS))
def test_the_error_of_a_nested_field_has_its_parts(tmp_path: Path, command: str) -> None:
    content, field, value = WRONG[command]
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    module, _, name = CONFIGS[command].partition(":")
    with pytest.raises(ConfigError) as caught:
        load(file, (), getattr(importlib.import_module(module), name))
    error = caught.value
    assert (error.field, error.value) == (field, value) and error.problem
    key = next(key for key in reversed(error.where) if isinstance(key, str))
    at = line_of(file.read_text(), key)
    at += 3 if command == "evaluate" else 0  # an item of a list has its own line
    assert str(error).startswith(f"{file}:{at}: {field} = {value}: {error.problem}")


@pytest.mark.parametrize(
    ("content", "build", "field", "value", "words"),
    [
        (
            {"pairs": {"sum": {"parts": ["same_patient", {"overlapping_crops": {"min_iou": 0.6}}]}}},
            lambda: (
                PAIRS.build(
                    Choice(
                        "sum",
                        {
                            "parts": [
                                Choice("same_patient"),
                                Choice("overlapping_crops", {"min_iou": 0.6, "max_iou": 0.5}),
                            ]
                        },
                    )
                ).strategies
            ),
            "pairs.sum.parts.1.overlapping_crops.min_iou",
            0.6,
            "overlapping_crops: min_iou = 0.6 exceeds max_iou = 0.5; swap them or widen the range",
        ),
        (
            {"encoder": {"unet3d": {"kernel_sizes": [3]}}},
            lambda: build_network(
                Choice("unet3d", {"channels": (4, 4), "strides": (1, 2), "kernel_sizes": (3,)}),
                1,
                decoder=False,
            ),
            "encoder.unet3d.kernel_sizes",
            [3],
            "encoder.unet3d: kernel_sizes = [3] has 1 entries and channels = [4, 4] has 2",
        ),
    ],
)
def test_the_error_of_a_constructor_gets_the_line_of_its_field(
    tmp_path: Path, content: dict[str, Any], build: Any, field: str, value: Any, words: str
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as caught, inside(field.partition(".")[0]):
        build()
    error = caught.value
    assert (error.field, error.value) == (field, value) and str(error).startswith(words)
    locate(error, file, ())
    at = line_of(file.read_text(), field.rpartition(".")[2])
    assert error.line == f"{file}:{at}" and str(error).startswith(f"{file}:{at}: {words}")

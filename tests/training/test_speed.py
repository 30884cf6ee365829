"""Options that reduce the cost of training do not change outputs, gradients, statistics or names."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from medcl3d.config.field_types import Choice
from medcl3d.core.errors import ConfigError, MachineError
from medcl3d.core.geometry import Triple
from medcl3d.distributed.precision import autocast
from medcl3d.encoders.decoder import Decoder
from medcl3d.encoders.network import Network, build_network
from medcl3d.pretraining.pretrain import pretrain
from medcl3d.training.speed import apply_cost_options
from tests.objectives.small import Step, batch_of
from tests.pretend.steps import ENCODERS

CPU = torch.device("cpu")
SMALL: list[tuple[str, dict[str, Any], Triple]] = [
    ("resnet3d", {"depth": 10, "width": 0.125, "norm": "batch"}, (32, 32, 32)),
    ("resnet3d", {"depth": 50, "width": 0.0625, "squeeze_excitation": True}, (32, 32, 32)),
    (
        "unet3d",
        {"channels": (4, 8, 8), "strides": (1, 2, 2), "blocks": (2, 1, 1), "norm": "batch"},
        (8, 8, 8),
    ),
    ("vit3d", {"patch": (4, 4, 4), "hidden_size": 12, "num_layers": 2, "num_registers": 2}, (8, 8, 8)),
    ("swin3d", {"feature_size": 6, "num_heads": (1, 2, 2, 3), "window_size": (4, 4, 4)}, (32, 32, 32)),
]


@contextmanager
def kept_bytes() -> Iterator[list[int]]:
    """Bytes that autograd saves for the backward pass, each tensor counted once, including weights."""
    sizes: dict[int, int] = {}
    total = [0]

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        total[0] = sum(sizes.values())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total


def one_step(
    network: nn.Module, x: Tensor, dtype: torch.dtype | None = None
) -> tuple[dict[str, Tensor], int]:
    """Gradients and buffers after a step as in `fit`, with the backward pass outside autocast."""
    with kept_bytes() as kept:
        with autocast(CPU, dtype):
            value = network(x).decoded.square().mean()
        size = kept[0]
    value.backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None} | dict(
        network.named_buffers()
    ), size


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize(("name", "fields", "shape"), SMALL)
def test_recomputed_activations_give_the_same_gradients_and_statistics(
    name: str, fields: dict[str, Any], shape: Triple, dtype: torch.dtype | None
) -> None:
    torch.manual_seed(0)
    network = build_network(Choice(name, fields), 1, decoder=True)
    cheaper = copy.deepcopy(network)
    apply_cost_options(cheaper, checkpointing=True)
    cheaper = copy.deepcopy(cheaper)  # as for a momentum encoder
    assert list(cheaper.state_dict()) == list(network.state_dict())
    x = torch.randn(2, 1, *shape)
    expected, before = one_step(network, x, dtype)
    found, after = one_step(cheaper, x, dtype)
    assert found.keys() == expected.keys() and len([p for p in network.parameters() if p.grad is None]) == 0
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-7, msg=key)
    assert after < before


def test_an_encoder_that_does_not_name_its_layers_is_refused() -> None:
    network = Network(nn.Conv3d(1, 4, 3), Decoder(1, (4,), ((1, 1, 1),)))
    with pytest.raises(ConfigError, match=r"train.checkpointing: Conv3d does not name its layers"):
        apply_cost_options(network, checkpointing=True)


@pytest.mark.parametrize(("name", "fields", "shape"), SMALL)
def test_channels_last_computes_the_same(name: str, fields: dict[str, Any], shape: Triple) -> None:
    torch.manual_seed(0)
    network = build_network(Choice(name, fields), 1, decoder=True)
    other, x = copy.deepcopy(network), torch.randn(2, 1, *shape)
    apply_cost_options(other, channels_last=True)
    weight = next(p for p in other.parameters() if p.ndim == 5 and p.shape[1] > 1 and max(p.shape[2:]) > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last_3d) and not weight.is_contiguous()
    torch.testing.assert_close(other(x).decoded, network(x).decoded, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(dict(other.state_dict()), dict(network.state_dict()), rtol=1e-5, atol=1e-6)


def test_a_missing_compiler_gives_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        MachineError, match=r"train.compile: no C\+\+ compiler found \(no-such-compiler\); install one"
    ):
        apply_cost_options(build_network(Choice("unet3d"), 1, decoder=False), compiled=True)


def pretrained(store: Path, folder: Path, **train: Any) -> tuple[dict[str, Tensor], list[float]]:
    """The weights and losses of four steps of pretraining."""
    config = {
        "data": {"root": str(store), "patch_size": [16, 16, 16], "smaller_than_patch": "pad"},
        "pairs": "overlapping_crops",
        "views": "mri",
        "encoder": {"unet3d": {"channels": [4, 8], "strides": [1, 2]}},
        "objective": "simclr",
        "train": {"steps": 4, "samples_per_step": 4, "log_every": 1, "precision": "float32", **train},
        "out_dir": str(folder),
    }
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    pretrain(path)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return load_file(folder / "encoder.safetensors"), [row["loss"] for row in rows]


def compare(store: Path, folder: Path, **train: Any) -> None:
    expected, losses = pretrained(store, folder / "plain")
    found, cheaper = pretrained(store, folder / "cheaper", **train)
    assert cheaper == pytest.approx(losses, rel=1e-3)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=2e-2, atol=2e-3, msg=key)


def test_a_cheaper_pretraining_gives_the_same_losses_and_weights(tiny_store: Path, tmp_path: Path) -> None:
    compare(tiny_store, tmp_path, checkpointing=True, channels_last=True)


@pytest.mark.slow
@pytest.mark.timeout(900)  # mostly the compiler, one or two minutes on an idle core
def test_a_compiled_pretraining_gives_the_same_losses_and_weights(tiny_store: Path, tmp_path: Path) -> None:
    compare(tiny_store, tmp_path, compile=True, checkpointing=True)


@pytest.mark.parametrize("encoder", ["unet3d", "vit3d"])
def test_options_reach_objectives_that_call_encoder_and_decoder_one_by_one(
    encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    model = Step("mae_contrastive", {encoder: ENCODERS[encoder]})
    expected = model(batch_of(range(4)))
    apply_cost_options(model, channels_last=True, compiled=True)
    formats: list[bool] = []
    for part in (model.network.encoder, model.network.decoder):
        part.register_forward_pre_hook(
            lambda _, inputs: formats.append(inputs[0].is_contiguous(memory_format=torch.channels_last_3d))
        )
    torch.testing.assert_close(model(batch_of(range(4))), expected, rtol=1e-4, atol=1e-5)
    assert len(formats) == 3 and all(formats), "views, visible blocks, decoder"
    assert compiled == [model.network.encoder, model.network.decoder]


@pytest.mark.slow
def test_masked_blocks_stay_masked_in_a_compiled_encoder() -> None:
    model = Step("mae_contrastive")
    expected = model(batch_of(range(4)))
    model.network.encoder.compile(backend="eager")
    torch.testing.assert_close(model(batch_of(range(4))), expected)
    torch.testing.assert_close(model(batch_of(range(4))), expected)

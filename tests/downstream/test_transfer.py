"""Loading of pretrained weights, and reasons to refuse them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from medcl3d.config.field_types import Choice
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.downstream.transfer import load_weights
from medcl3d.encoders.network import Network, build_network
from medcl3d.training.run_folder import RunFolder

FIELDS: dict[str, dict[str, Any]] = {
    "unet3d": {"channels": (4, 8), "strides": (1, 2)},
    "resnet3d": {"depth": 10, "width": 0.125, "norm": "batch", "stem_kernel": 3},
    "vit3d": {"patch": (8, 8, 8), "hidden_size": 12, "num_layers": 1},
    "swin3d": {"feature_size": 6, "num_heads": (1, 2, 2, 3), "window_size": (4, 4, 4)},
}


def network_of(
    name: str = "unet3d", in_channels: int = 1, decoder: bool = True, seed: int = 0, **fields: Any
) -> Network:
    torch.manual_seed(seed)
    return build_network(Choice(name, {**FIELDS[name], **fields}), in_channels, decoder=decoder)


def write_run(
    folder: Path,
    network: Network,
    name: str = "unet3d",
    in_channels: int = 1,
    prefix: str = "",
    **changed: Any,
) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(
        {prefix + key: value.contiguous() for key, value in network.state_dict().items()},
        folder / "encoder.safetensors",
    )
    content = {
        "schema": 1, "architecture": {name: FIELDS[name]}, "in_channels": in_channels,
        "decoder": network.decoder is not None,
        "pretraining_patients": ["p1", "p2"], **changed,
    }  # fmt: skip
    (folder / "encoder.json").write_text(
        json.dumps({key: value for key, value in content.items() if value is not None})
    )
    return folder


@pytest.mark.parametrize("name", ["unet3d", "resnet3d"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_round_trip_of_encoder_and_decoder(tmp_path: Path, name: str, prefix: str) -> None:
    pretrained, fresh = network_of(name), network_of(name, seed=1)
    report = load_weights(fresh, write_run(tmp_path / "run", pretrained, name, prefix=prefix), "all", ["p3"])
    for key, value in pretrained.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[key], value, rtol=0, atol=0)
    assert f"loaded encoder and decoder, {len(fresh.state_dict())} tensors" in report.notes[0]
    x = torch.randn(1, 1, 32, 32, 32)
    torch.testing.assert_close(fresh.eval()(x).decoded, pretrained.eval()(x).decoded)


def test_a_wrapper_inside_a_name_is_removed(tmp_path: Path) -> None:
    pretrained, fresh = network_of(), network_of(seed=1)
    folder = write_run(tmp_path / "run", pretrained)
    weights = load_file(folder / "encoder.safetensors")
    save_file(
        {key.replace("encoder.", "encoder._orig_mod."): value for key, value in weights.items()},
        folder / "encoder.safetensors",
    )
    load_weights(fresh, folder, "encoder")
    assert torch.equal(next(fresh.encoder.parameters()), next(pretrained.encoder.parameters()))


def test_loading_only_the_encoder_does_not_change_the_decoder(tmp_path: Path) -> None:
    pretrained, fresh = network_of(), network_of(seed=1)
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    report = load_weights(fresh, write_run(tmp_path / "run", pretrained) / "encoder.safetensors", "encoder")
    for key, value in fresh.state_dict().items():
        expected = pretrained.state_dict()[key] if key.startswith("encoder.") else before[key]
        torch.testing.assert_close(value, expected, rtol=0, atol=0)
    assert "loaded encoder," in report.notes[0]


@pytest.mark.parametrize("name", FIELDS)
def test_one_input_channel_into_three(tmp_path: Path, name: str) -> None:
    """Three equal channels give the output of one, and a note reports it."""
    pretrained, fresh = network_of(name), network_of(name, in_channels=3, seed=1)
    report = load_weights(fresh, write_run(tmp_path / "run", pretrained, name), "all")
    x = torch.randn(2, 1, 32, 32, 32)
    ours, theirs = fresh.eval()(x.expand(-1, 3, -1, -1, -1)), pretrained.eval()(x)
    torch.testing.assert_close(ours.decoded, theirs.decoded, rtol=1e-4, atol=1e-4)
    stems = [key for key, value in fresh.state_dict().items() if value.ndim == 5 and value.shape[1] == 3]
    assert any(key.startswith("decoder.input_skip") for key in stems) == (name != "unet3d")
    assert f": {', '.join(stems)} repeated" in report.notes[1]
    assert (
        "pretrained with one input channel, this network has 3" in report.notes[1]
        and "divided by 3" in report.notes[1]
    )


@pytest.mark.parametrize("name", FIELDS)
def test_two_input_channels_into_six_keep_their_order(tmp_path: Path, name: str) -> None:
    pretrained, fresh = network_of(name, in_channels=2), network_of(name, in_channels=6, seed=1)
    report = load_weights(fresh, write_run(tmp_path / "run", pretrained, name, in_channels=2), "all")
    x = torch.randn(2, 2, 32, 32, 32)
    ours, theirs = fresh.eval()(torch.cat((x, x, x), dim=1)), pretrained.eval()(x)
    torch.testing.assert_close(ours.decoded, theirs.decoded, rtol=1e-4, atol=1e-4)
    assert (
        "2 input channels, this network has 6" in report.notes[1]
        and "repeated 3 times and divided by 3" in report.notes[1]
    )
    with pytest.raises(ConfigError, match="another shape"):
        load_weights(network_of(name, in_channels=3), tmp_path / "run", "all")


def test_test_patients_used_in_pretraining_are_reported(tmp_path: Path) -> None:
    fresh = network_of(seed=1)
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    with pytest.raises(DataError, match=r"1 of the test patients: p2;"):
        load_weights(fresh, write_run(tmp_path / "run", network_of()), "encoder", ["p2", "p9"])
    assert all(torch.equal(before[key], value) for key, value in fresh.state_dict().items())


def test_another_architecture_is_refused_with_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run", network_of())
    wider = network_of(channels=(4, 12))
    with pytest.raises(
        ConfigError, match=r"[0-9]+% of [0-9]+ tensors match.*another shape.*unet3d.*scratch"
    ) as error:
        load_weights(wider, folder, "encoder")
    assert "\n" not in str(error.value)
    assert "encoder.stages.1.0.conv1.conv.weight" in capsys.readouterr().err
    deeper = network_of(channels=(4, 8, 8), strides=(1, 2, 2))
    with pytest.raises(ConfigError, match=r"missing"):
        load_weights(deeper, folder, "encoder")
    shallower = network_of(channels=(4,), strides=(1,))
    with pytest.raises(ConfigError, match=r"100% of .* unexpected"):
        load_weights(shallower, folder, "encoder")
    with pytest.raises(ConfigError, match="another shape"):
        load_weights(
            network_of(in_channels=1),
            write_run(tmp_path / "four", network_of(in_channels=4), in_channels=4),
            "encoder",
        )


def test_a_damaged_decoder_is_refused_only_if_it_is_requested(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", network_of())
    weights = load_file(folder / "encoder.safetensors")
    weights.pop(next(key for key in weights if key.startswith("decoder.")))
    save_file(weights, folder / "encoder.safetensors")
    load_weights(network_of(seed=1), folder, "encoder")
    with pytest.raises(ConfigError, match="1 missing"):
        load_weights(network_of(seed=1), folder, "all")


def test_transfer_of_a_missing_decoder_is_refused(tmp_path: Path) -> None:
    without = write_run(tmp_path / "without", network_of(decoder=False))
    with pytest.raises(ConfigError, match=r"transfer = all.*no decoder.*set transfer: encoder"):
        load_weights(network_of(), without, "all")
    with pytest.raises(ConfigError, match=r"this task has no decoder"):
        load_weights(network_of(decoder=False), write_run(tmp_path / "with", network_of()), "all")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"schema": 2}, "newer medcl3d"),
        ({"schema": None}, "cannot be read"),
        ({"pretraining_patients": None}, "lacks pretraining_patients"),
    ],
)
def test_incomplete_sidecars_are_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_weights(network_of(), write_run(tmp_path / "run", network_of(), **changed), "encoder")


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", network_of())
    whole = (folder / "encoder.safetensors").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not weights at all"):
        (folder / "encoder.safetensors").write_bytes(content)
        with pytest.raises(ConfigError, match="not a complete safetensors file"):
            load_weights(network_of(), folder, "encoder")
    torch.save({"x": torch.zeros(1)}, folder / "encoder.safetensors")
    with pytest.raises(ConfigError, match="not a complete safetensors file"):
        load_weights(network_of(), folder, "encoder")
    (folder / "encoder.json").unlink()
    with pytest.raises(ConfigError, match="is missing"):
        load_weights(network_of(), folder, "encoder")
    with pytest.raises(ConfigError, match="file not found"):
        load_weights(network_of(), tmp_path / "nothing.safetensors", "encoder")


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not the run folder of a pretraining"):
        load_weights(network_of(), tmp_path, "encoder")
    (tmp_path / "status.json").write_text(json.dumps({"state": "running"}))
    with pytest.raises(ConfigError, match="running; let it finish"):
        load_weights(network_of(), tmp_path, "encoder")


@pytest.mark.parametrize("seed", range(5))
def test_a_flipped_byte_in_the_weights_of_a_run_is_noticed(tmp_path: Path, seed: int) -> None:
    pretrained, source = network_of(), write_run(tmp_path / "source", network_of())
    sidecar = json.loads((source / "encoder.json").read_text())
    RunFolder(tmp_path, finished=False).weights("encoder", pretrained, sidecar)
    path = tmp_path / "encoder.safetensors"
    load_weights(network_of(), path, "encoder")
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    content[np.random.default_rng(seed).integers(header, len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"not the weights that encoder.json describes"):
        load_weights(network_of(), path, "encoder")

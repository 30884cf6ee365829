"""Any network as an encoder: from Python, and by the import path of an installed package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.networks.nets.densenet import DenseNet
from torch import Tensor, nn

import medcl3d
from medcl3d.config.field_types import Choice
from medcl3d.core.errors import ConfigError
from medcl3d.downstream.pretrained_encoder import load_encoder
from medcl3d.encoders import ENCODERS
from medcl3d.encoders.module import as_encoder

DENSENET = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 1,
    "init_features": 8,
    "growth_rate": 4,
    "block_config": [1, 1],
}
OF_MONAI = {
    "path": "monai.networks.nets.densenet:DenseNet",
    "attribute": "features",
    "channels": [10],
    "strides": [8],
}


def densenet() -> nn.Module:
    torch.manual_seed(0)
    return DenseNet(**DENSENET)


def built(**fields: Any) -> nn.Module:
    encoder: nn.Module = ENCODERS.get("module")(1, **{**OF_MONAI, "arguments": DENSENET, **fields})
    return encoder


class Pyramid(nn.Module):
    """Two maps, as a list, a tuple or a dict."""

    def __init__(self, kind: type):
        super().__init__()
        self.kind, self.first, self.second = kind, nn.Conv3d(1, 3, 2, 2), nn.Conv3d(3, 5, 2, 2)

    def forward(self, x: Tensor) -> Any:
        first = self.first(x)
        maps = (first, self.second(first))
        return dict(enumerate(maps)) if self.kind is dict else self.kind(maps)


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_several_maps_finest_first(kind: type) -> None:
    encoder = as_encoder(Pyramid(kind), channels=[3, 5], strides=[2, (4, 4, 4)])
    features = encoder(torch.randn(2, 1, 8, 8, 12))
    assert [tuple(one.shape) for one in features.maps] == [(2, 3, 4, 4, 6), (2, 5, 2, 2, 3)]
    torch.testing.assert_close(features.pooled, features.maps[-1].mean((2, 3, 4)))
    assert encoder.num_features == 5 and encoder.strides == ((2, 2, 2), (4, 4, 4))


def test_a_path_and_python_give_the_same_encoder() -> None:
    torch.manual_seed(0)
    by_path, by_python = (
        built().eval(),
        as_encoder(densenet(), attribute="features", channels=10, strides=8).eval(),
    )
    x = torch.randn(1, 1, 16, 16, 16)
    torch.testing.assert_close(by_path(x).pooled, by_python(x).pooled, rtol=0, atol=0)


def config(root: Path, encoder: Any) -> dict[str, Any]:
    return {
        "data": {"root": str(root), "patch_size": [16, 16, 16]},
        "pairs": "augmented_views",
        "views": "mri",
        "encoder": encoder,
        "objective": "simclr",
        "train": {"steps": 1, "samples_per_step": 2},
    }


def test_pretraining_from_python_trains_a_copy_and_loads_again(tiny_store: Path, tmp_path: Path) -> None:
    network = densenet()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    encoder = as_encoder(network, attribute="features", channels=10, strides=8)
    run = medcl3d.pretrain(config(tiny_store, encoder), out_dir=tmp_path / "a")
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    trained = run.encoder(encoder)
    assert trained(torch.zeros(1, 1, 16, 16, 16)).pooled.shape == (1, 10)
    assert not torch.equal(next(trained.parameters()), next(encoder.parameters()))
    with pytest.raises(ConfigError, match="passed from Python; pass it again"):
        load_encoder(run.path)
    with pytest.raises(ConfigError, match="wrap it"):
        medcl3d.pretrain(config(tiny_store, None), out_dir=tmp_path / "b", encoder=network)


def test_pretraining_from_yaml_and_its_features(tiny_store: Path, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        yaml.safe_dump(config(tiny_store, {"module": {**OF_MONAI, "arguments": DENSENET}}))
    )
    run = medcl3d.pretrain(tmp_path / "a.yaml", out_dir=tmp_path / "run")
    scan = sorted((tiny_store / "raw" / "images").glob("*.nii.gz"))[0]
    volume = medcl3d.extract_features(run.path, scan, dense=True)
    assert isinstance(volume, Tensor) and volume.shape == (10, 32, 32, 32)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"path": "os:system", "arguments": {"command": "touch ran"}},
            "os is not part of an installed package",
        ),
        ({"path": "no_such_package.nets:Net"}, "no_such_package is not part of an installed package"),
        ({"path": "monai.networks.no_such:Net"}, "cannot be imported"),
        ({"path": "monai.networks.nets:NoSuchNet"}, "has no torch.nn.Module class NoSuchNet"),
        ({"path": "monai.networks.utils:one_hot"}, "only such classes"),
        (
            {
                "path": "yaml:unsafe_load",
                "arguments": {"stream": "!!python/object/apply:os.system [touch ran]"},
            },
            "only such classes",
        ),
        ({"path": "__import__('os').system('touch ran')"}, "not an import path"),
        ({"arguments": {"spatial_dims": 3}}, "refuses its arguments"),
        ({"attribute": "feature"}, "its parts are features, class_layers"),
        ({"strides": [4, 8]}, "one of each per map"),
        ({"channels": [10, 4], "strides": [8, 4]}, "finest first"),
    ],
)
def test_refusals_are_one_line_and_run_nothing(
    fields: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message) as refused:
        built(**fields)
    assert "\n" not in str(refused.value) and str(refused.value).startswith("encoder.module: ")
    assert not (tmp_path / "ran").exists()


def test_a_module_beside_the_configuration_is_not_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beside.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="not part of an installed package"):
        built(path="beside:Net")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("module", "declared", "message"),
    [
        (nn.Conv3d(1, 4, 2, 2), {"channels": 5, "strides": 2}, r"makes maps of shapes \[\(4, 4, 4, 4\)\]"),
        (nn.Conv3d(2, 4, 2, 2), {"channels": 4, "strides": 2}, "does not take crops"),
        (nn.LSTM(8, 8), {"channels": 4, "strides": 2}, "does not take crops|not feature maps"),
    ],
)
def test_maps_are_checked_against_their_declaration(
    module: nn.Module, declared: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        as_encoder(module, **declared)(torch.zeros(1, 1, 8, 8, 8))


def test_a_class_is_not_a_module() -> None:
    with pytest.raises(ConfigError, match="construct the network"):
        as_encoder(DenseNet, channels=1, strides=1)  # type: ignore[arg-type]


def test_a_choice_names_it() -> None:
    choice = as_encoder(densenet(), attribute="features", channels=10, strides=8).choice
    assert isinstance(choice, Choice) and choice.fields["path"] == "monai.networks.nets.densenet:DenseNet"


def test_other_weights_of_a_module_are_not_the_same_evaluation(
    tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {
        "data": {"root": str(tiny_store), "patch_size": [16, 16, 16]},
        "retrieval": {"same": "modality", "differ": "scan"},
        "precision": "float32",
    }
    network = densenet()
    encoder = as_encoder(network, attribute="features", channels=10, strides=8)
    found = medcl3d.evaluate(fields, encoder=encoder, out_dir=tmp_path / "run")
    assert "with the weights of the module from Python" in capsys.readouterr().out
    again = as_encoder(densenet(), attribute="features", channels=10, strides=8)
    assert medcl3d.evaluate(fields, encoder=again, out_dir=tmp_path / "run").metrics == found.metrics
    with torch.no_grad():
        next(network.features.parameters()).add_(1)
    with pytest.raises(ConfigError, match="started from other weights"):
        medcl3d.evaluate(fields, encoder=encoder, out_dir=tmp_path / "run")


def test_a_pretraining_resumes_with_other_initial_weights_but_not_with_another_module(
    tiny_store: Path, tmp_path: Path
) -> None:
    first = as_encoder(densenet(), attribute="features", channels=10, strides=8)
    run = medcl3d.pretrain(config(tiny_store, first), out_dir=tmp_path / "run")
    unseeded = DenseNet(**DENSENET)
    again = as_encoder(unseeded, attribute="features", channels=10, strides=8)
    assert medcl3d.pretrain(config(tiny_store, again), out_dir=tmp_path / "run").path == run.path
    narrower = DenseNet(**(DENSENET | {"bn_size": 2}))
    other = as_encoder(narrower, attribute="features", channels=10, strides=8)
    with pytest.raises(ConfigError, match="started from other weights"):
        medcl3d.pretrain(config(tiny_store, other), out_dir=tmp_path / "run")

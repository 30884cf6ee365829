"""Published layouts: networks of their own libraries with random weights give the same maps after loading."""

from __future__ import annotations

import io
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets.resnet import ResNet
from monai.networks.nets.segresnet_ds import SegResEncoder, SegResNetDS
from monai.networks.nets.swin_unetr import SwinUNETR
from pydantic.dataclasses import dataclass
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from medcl3d.config.choices import choice_of
from medcl3d.config.field_types import STRICT
from medcl3d.config.loading import parse
from medcl3d.core.errors import ConfigError
from medcl3d.downstream.transfer import load_weights
from medcl3d.encoders import ENCODERS
from medcl3d.encoders.network import Network, build_network
from medcl3d.layouts import LAYOUTS
from medcl3d.layouts.foreign import ForeignWeights, LayoutName, foreign_encoder
from medcl3d.layouts.layout import to_ras
from medcl3d.layouts.weights_file import read_weights_file

SIZE = (32, 32, 32)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Described:
    encoder: choice_of(ENCODERS)  # type: ignore[valid-type]


def with_weights(network: nn.Module) -> nn.Module:
    """The network in evaluation mode; random weights and statistics give every norm an effect."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape))
    return network.eval()


def loaded(path: Path, layout: LayoutName) -> Network:
    """A network with the encoder that the file is of, and its weights."""
    foreign = ForeignWeights(weights=path, layout=layout, saw="unknown")
    described = foreign_encoder(foreign).sidecar
    choice = parse({"encoder": described["architecture"]}, Described, "test").encoder
    network = build_network(choice, described["in_channels"], decoder=False)
    load_weights(network, foreign, "encoder")
    return network.eval()


def largest_difference(ours: tuple[Tensor, ...], theirs: typing.Sequence[Tensor]) -> float:
    """Relative to the largest value of a map, or absolute below 1."""
    assert [one.shape for one in ours] == [one.shape for one in theirs]
    assert all(float(one.std()) > 1e-4 for one in theirs)
    each = zip(ours, theirs, strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1)) for a, b in each)


@torch.no_grad()
def maps(network: Network, crops: Tensor) -> tuple[Tensor, ...]:
    return network(crops).maps


def crops(*size: int) -> Tensor:
    return torch.randn((2, 1, *(size or SIZE)), generator=torch.Generator().manual_seed(2))


def test_names_in_configurations_are_those_of_the_layouts() -> None:
    assert typing.get_args(LayoutName) == tuple(LAYOUTS)


def swin_state(kind: str, network: SwinUNETR) -> Mapping[str, Any]:
    """The content of a file of MONAI: the whole network, its pretraining, or Disruptive Autoencoders."""
    if kind == "whole":
        return network.state_dict()
    inside = network.swinViT.state_dict()
    if kind == "ssl":  # names before MONAI 0.9, heads of the pretraining
        former = {name.replace(".linear", ".fc"): one for name, one in inside.items()}
        return {
            "state_dict": {f"module.{n}": one for n, one in former.items()} | {"module.head": torch.ones(2)}
        }
    repeated = {
        name.replace(".0.", ".0.0.", 1) if name.startswith("layers") else name: one
        for name, one in inside.items()
    }
    return {
        "model": {f"encoder.{n}": one for n, one in repeated.items()} | {"encoder.mask_token": torch.ones(2)}
    }


@pytest.mark.parametrize("kind", ["whole", "ssl", "dae"])
def test_swin_unetr(kind: str, tmp_path: Path) -> None:
    network = with_weights(SwinUNETR(in_channels=1, out_channels=2, feature_size=12, window_size=4))
    torch.save(swin_state(kind, network), tmp_path / "model.pt")
    ours = loaded(tmp_path / "model.pt", "monai_swin_unetr")
    with torch.no_grad():
        theirs = network.swinViT(crops())
    assert largest_difference(maps(ours, crops()), theirs) == 0


@pytest.mark.parametrize(
    ("layout", "block", "layers", "shortcut"),
    [
        ("medicalnet", "basic", [1, 1, 1, 1], "B"),
        ("medicalnet", "basic", [2, 2, 2, 2], "A"),
        ("monai_resnet", "basic", [2, 2, 2, 2], "B"),
        ("monai_resnet", "bottleneck", [3, 4, 6, 3], "B"),
    ],
)
def test_resnets_of_monai_and_medicalnet(
    layout: LayoutName, block: str, layers: list[int], shortcut: str, tmp_path: Path
) -> None:
    """Shortcuts of type A have no weights; those of MONAI's default have a bias before their norm."""
    published = layout == "medicalnet"
    fields = {"n_input_channels": 1, "feed_forward": False, "shortcut_type": shortcut}
    fields |= {"conv1_t_stride": 2, "bias_downsample": False} if published else {}
    network: Any = with_weights(ResNet(block, layers, [8, 16, 32, 64], **fields))
    wrapped = {f"module.{name}": one for name, one in network.state_dict().items()}
    torch.save({"state_dict": {**wrapped, "module.conv_seg.0.weight": torch.ones(2)}}, tmp_path / "a.pth")
    ours = loaded(tmp_path / "a.pth", layout)
    with torch.no_grad():
        x = network.act(network.bn1(network.conv1(crops())))
        theirs = [x.clone()]
        x = network.maxpool(x)
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
            x = stage(x)
            theirs.append(x.clone())
    assert largest_difference(maps(ours, crops()), theirs) < 1e-5


def reverse(x: Tensor) -> Tensor:
    """Axes x, y, z as z, y, x."""
    return x.permute(0, 1, 4, 3, 2)


@pytest.mark.parametrize("kind", ["resenc", "plain"])
def test_encoders_of_nnunet(kind: str, tmp_path: Path) -> None:
    """Their own network, on arrays with reversed axes; strides and kernels differ between axes."""
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    fields: dict[str, Any] = {
        "input_channels": 1, "n_stages": 3, "features_per_stage": [6, 8, 8], "conv_op": nn.Conv3d,
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]], "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "num_classes": 2, "n_conv_per_stage_decoder": [2, 2], "conv_bias": True,
        "norm_op": nn.InstanceNorm3d, "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip
    network = with_weights(
        unet.ResidualEncoderUNet(n_blocks_per_stage=[1, 2, 2], **fields)
        if kind == "resenc"
        else unet.PlainConvUNet(n_conv_per_stage=[2, 2, 4], **fields)
    )
    network.encoder.return_skips = True
    plans = {
        "configurations": {"3d_fullres": {"architecture": {"arch_kwargs": {"strides": fields["strides"]}}}}
    }
    content = {
        "network_weights": network.state_dict(),
        "init_args": {"plans": plans, "configuration": "3d_fullres"},
        "_best_ema": np.float64(0.8),  # as nnU-Net writes it
        "logging": {"ema_fg_dice": [np.float32(0.7)]},
    }
    torch.save(content, tmp_path / "checkpoint_final.pth")
    ours = loaded(tmp_path / "checkpoint_final.pth", "nnunet")
    with torch.no_grad():
        theirs = [reverse(one) for one in network.encoder(reverse(crops()))]
    assert largest_difference(maps(ours, crops()), theirs) < 1e-5


def test_openmind_without_plans_has_strides_of_two(tmp_path: Path) -> None:
    encoders = pytest.importorskip("dynamic_network_architectures.building_blocks.residual_encoders")
    network = with_weights(
        encoders.ResidualEncoder(
            1, 3, [4, 8, 8], nn.Conv3d, 3, [1, 2, 2], [1, 1, 2], True, nn.InstanceNorm3d,
            {"eps": 1e-5, "affine": True}, None, None, nn.LeakyReLU, {"inplace": True}, return_skips=True,
        )
    )  # fmt: skip
    state = {f"encoder.{name}": one for name, one in network.state_dict().items()}
    torch.save({"network_weights": state, "nnssl_adaptation_plan": {}}, tmp_path / "a.pth")
    ours = loaded(tmp_path / "a.pth", "openmind")
    with torch.no_grad():
        theirs = [reverse(one) for one in network(reverse(crops()))]
    assert largest_difference(maps(ours, crops()), theirs) < 1e-5


def as_spl(x: Tensor) -> Tensor:
    """Axes right, front, head as head, back, left."""
    return x.permute(0, 1, 4, 3, 2).flip(3, 4)


def from_spl(x: Tensor) -> Tensor:
    return x.flip(3, 4).permute(0, 1, 4, 3, 2)


@pytest.mark.parametrize("kind", ["encoder", "segmentation"])
def test_ct_fm(kind: str, tmp_path: Path) -> None:
    """In another orientation; sizes are odd, since a flip of an even size moves the strided positions."""
    shape = {"spatial_dims": 3, "in_channels": 1, "init_filters": 4, "blocks_down": (1, 2, 1)}
    network: nn.Module = SegResEncoder(**shape) if kind == "encoder" else SegResNetDS(out_channels=2, **shape)
    network = with_weights(network)
    encoder = network if kind == "encoder" else network.encoder
    if kind == "encoder":  # a checkpoint of Lightning
        content: Any = {"state_dict": {f"backbone.{n}": one for n, one in network.state_dict().items()}}
        torch.save({**content, "epoch": 449}, tmp_path / "a.ckpt")
    else:
        save_file(network.state_dict(), tmp_path / "a.safetensors")
    ours = loaded(next(tmp_path.glob("a.*")), "ct_fm")
    odd = crops(17, 21, 13)
    with torch.no_grad():
        found = ours.encoder.wrapped(odd)  # the encoder itself refuses odd sizes
        theirs = [from_spl(one) for one in encoder(as_spl(odd))]
    assert largest_difference(tuple(found), theirs) < 1e-5
    assert [one.shape[2:] for one in maps(ours, crops())] == [(32, 32, 32), (16, 16, 16), (8, 8, 8)]


def anatomix_output(state: Mapping[str, Tensor], x: Tensor, num_downs: int) -> Tensor:
    """The U-Net of the paper (appendix B), written from its description with functions only."""
    index = 0

    def convolved(x: Tensor) -> Tensor:
        nonlocal index
        x = functional.conv3d(functional.pad(x, (1,) * 6, mode="reflect"), state[f"model.{index}.weight"])
        names = ("running_mean", "running_var", "weight", "bias")
        x = functional.batch_norm(x, *(state[f"model.{index + 1}.{name}"] for name in names))
        index += 3
        return functional.relu(x)

    x, skipped = convolved(x), []
    for stage in range(num_downs + 1):
        x = convolved(convolved(x))
        if stage < num_downs:
            skipped.append(x)
            x = functional.max_pool3d(x, 2)
            index += 1
    for before in reversed(skipped):
        index += 1
        x = convolved(convolved(torch.cat((before, functional.interpolate(x, scale_factor=2)), 1)))
    return functional.conv3d(functional.pad(x, (1,) * 6, mode="reflect"), state[f"model.{index}.weight"])


def anatomix_state(width: int, num_downs: int, out_channels: int) -> dict[str, Tensor]:
    choice = {"whole_unet3d": {"width": width, "num_downs": num_downs, "out_channels": out_channels}}
    described = parse({"encoder": choice}, Described, "test").encoder
    return with_weights(build_network(described, 1, decoder=False).encoder).state_dict()


def test_anatomix(tmp_path: Path) -> None:
    state = anatomix_state(4, 2, 5)
    torch.save({f"_orig_mod.{name}": one for name, one in state.items()}, tmp_path / "anatomix.pth")
    ours = loaded(tmp_path / "anatomix.pth", "anatomix")
    with torch.no_grad():
        theirs = anatomix_output(state, crops(), 2)
    assert largest_difference(maps(ours, crops())[:1], [theirs]) < 1e-5


def test_crops_that_anatomix_cannot_reflect_are_refused() -> None:
    described = parse({"encoder": {"whole_unet3d": {"width": 2, "num_downs": 3}}}, Described, "test").encoder
    network = build_network(described, 1, decoder=False)
    assert network(torch.randn(2, 1, 16, 16, 16)).maps[-1].shape[2:] == (2, 2, 2)
    with pytest.raises(ConfigError, match=r"data.patch_size = \[16, 16, 8\].*use 16 or more per axis"):
        network(torch.randn(2, 1, 16, 16, 8))


def test_kernels_in_another_orientation() -> None:
    kernel = torch.randn(3, 2, 3, 3, 3)
    x = torch.randn(1, 2, 6, 7, 8)
    with torch.no_grad():
        theirs = from_spl(functional.conv3d(as_spl(x), kernel, padding=1))
        ours = functional.conv3d(x, to_ras(kernel, "SPL"), padding=1)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.equal(to_ras(kernel, "SAR"), kernel.permute(0, 1, 4, 3, 2))
    assert to_ras(kernel, "RAS") is kernel


def test_tensors_that_are_not_of_the_encoder_are_named(tmp_path: Path) -> None:
    state = {**anatomix_state(4, 1, 4), "head.weight": torch.ones(2), "head.bias": torch.ones(2)}
    torch.save(state, tmp_path / "a.pth")
    foreign = foreign_encoder(ForeignWeights(weights=tmp_path / "a.pth", layout="anatomix", saw="none"))
    assert foreign.notes == (
        f"{tmp_path / 'a.pth'}: 2 of {len(state)} tensors are not of the encoder and are left out: head",
    )


@pytest.mark.parametrize("core", ["core", "_core"])
def test_numbers_of_both_versions_of_numpy_are_read(core: str, tmp_path: Path) -> None:
    file = io.BytesIO()
    content = {"state_dict": anatomix_state(2, 1, 2), "best": np.float64(0.5), "curve": np.arange(3.0)}
    torch.save(content, file, _use_new_zipfile_serialization=False)
    names = {b"numpy._core.multiarray", b"numpy.core.multiarray"}
    written = file.getvalue()
    for name in names:  # the protocol of this format writes names of modules in lines
        written = written.replace(b"c" + name + b"\n", f"cnumpy.{core}.multiarray\n".encode())
    assert f"numpy.{core}.multiarray".encode() in written
    found = read_weights_file(written, tmp_path / "a.pth")
    assert found.others["best"] == 0.5 and list(found.others["curve"]) == [0, 1, 2]


class Opaque:
    """An object that weights should not hold."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a file of PyTorch, or damaged"),
        (
            b"<html>not found</html>",
            "needs objects that only running its code can make|not a file of PyTorch",
        ),
        ({"state_dict": {}}, "holds no tensors, but state_dict"),
        ([1, 2], "holds a list, not tensors by name"),
        ({"model": Opaque()}, "needs objects that only running its code can make.*save its state_dict alone"),
        ({"conv1.weight": torch.ones(1)}, "holds no tensor model.0.weight, which the U-Net of anatomix has"),
    ],
)
def test_files_of_another_kind_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ConfigError, match=message) as caught:
        foreign_encoder(ForeignWeights(weights=path, layout="anatomix", saw="none"))
    assert str(path) in str(caught.value)


def test_a_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    torch.save(anatomix_state(4, 1, 4), file)
    path = tmp_path / "a.pth"
    path.write_bytes(file.getvalue()[:-1000])
    with pytest.raises(ConfigError, match="not a file of PyTorch, or damaged"):
        foreign_encoder(ForeignWeights(weights=path, layout="anatomix", saw="none"))
    with pytest.raises(ConfigError, match=r"No such file.*download it; layout anatomix is anatomix\.pth"):
        foreign_encoder(ForeignWeights(weights=tmp_path / "b.pth", layout="anatomix", saw="none"))


def test_another_encoder_is_refused_with_the_one_to_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(anatomix_state(4, 1, 4), tmp_path / "a.pth")
    choice = parse({"encoder": {"whole_unet3d": {"width": 8, "num_downs": 1}}}, Described, "test").encoder
    network = build_network(choice, 1, decoder=False)
    foreign = ForeignWeights(weights=tmp_path / "a.pth", layout="anatomix", saw="unknown")
    with pytest.raises(ConfigError, match=r'not the network.*"whole_unet3d": \{"width": 4, "num_downs": 1'):
        load_weights(network, foreign, "encoder")
    assert "in the file" in capsys.readouterr().err

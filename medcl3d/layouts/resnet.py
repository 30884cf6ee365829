"""Residual networks of MONAI, and of MedicalNet, whose names MONAI's are."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from medcl3d.core.errors import ConfigError
from medcl3d.encoders.resnet3d import BLOCKS, WIDTHS
from medcl3d.layouts.layout import Converted, Layout, State, WeightsFile, count, needed

NETWORK = "a 3-D ResNet of MONAI"
STAGES = range(1, 5)
EPSILON = 1e-5  # of batch norm
STRIDES_MATTER = (
    "MedicalNet's last two stages are dilated; here, as in MONAI, they have strides of 2 instead, so that "
    "maps are coarser"
)


def convert(file: WeightsFile, stem_stride: int = 1) -> Converted:
    """A ResNet with batch norm of depth 10, 18, 34 or 50, with shortcuts of type A or B.

    stem_stride: of the first convolution, which is not in the tensors; MONAI's default is 1
    """
    tensors = file.tensors
    stem = needed(tensors, "conv1.weight", NETWORK)
    blocks = [count(tensors, rf"layer{stage}\.(\d+)\.") for stage in STAGES]
    bottleneck = "layer1.0.conv3.weight" in tensors
    depth = next(
        (
            depth
            for depth, (block, counts) in BLOCKS.items()
            if list(counts) == blocks and (block.expansion > 1) == bottleneck
        ),
        None,
    )
    if depth is None:
        known = ", ".join(map(str, BLOCKS))
        problem = f"a ResNet of {blocks} blocks, not one of the depths {known}"
        raise ConfigError(problem=problem, remedy="use weights of these")
    parts = ("conv1.", "bn1.", *(f"layer{stage}." for stage in STAGES))
    weights = {name: tensor for name, tensor in tensors.items() if name.startswith(parts)}
    used = frozenset(weights)
    _fold_biases(weights)
    made = _shortcuts_without_weights(weights)
    fields = {
        "depth": depth,
        "width": len(stem) / WIDTHS[0],
        "norm": "batch",
        "stem_kernel": stem.shape[2],
        "stem_stride": stem_stride,
    }
    notes = () if not made else (f"shortcuts without weights (type A) are 1x1x1 convolutions here: {made}",)
    return Converted({"resnet3d": fields}, stem.shape[1], weights | _constant(made, weights), used, notes)


def medicalnet(file: WeightsFile) -> Converted:
    """The same, of MedicalNet, whose first convolution has stride 2."""
    found = convert(file, stem_stride=2)
    return replace(found, notes=(*found.notes, STRIDES_MATTER))


def _fold_biases(weights: State) -> None:
    """Move biases of shortcuts, which resnet3d does not have, into the means of the norms after them."""
    for name in [name for name in weights if name.endswith(".downsample.0.bias")]:
        bias, mean = weights.pop(name), name.replace(".0.bias", ".1.running_mean")
        weights[mean] = weights[mean] - bias


def _shortcuts_without_weights(weights: State) -> list[str]:
    """Shortcuts of type A: strided copies, padded with channels of zeros, that have no tensors."""
    return [
        f"layer{stage}.0.downsample"
        for stage in STAGES[1:]
        if f"layer{stage}.0.downsample.0.weight" not in weights
    ]


def _constant(shortcuts: list[str], weights: State) -> State:
    """Convolutions and batch norms that compute the same in evaluation mode: kernels of 0 and 1, norms that
    keep their input.
    """
    made: State = {}
    for name in shortcuts:
        stage = name.removesuffix(".0.downsample")
        channels = weights[f"{stage}.0.conv1.weight"].shape[1]
        out = weights[f"{stage}.0.bn2.weight"].shape[0]
        made[f"{name}.0.weight"] = torch.eye(out, channels)[:, :, None, None, None]
        made |= {f"{name}.1.{key}": value for key, value in _identity_norm(out).items()}
    return made


def _identity_norm(channels: int) -> dict[str, Tensor]:
    ones, zeros = torch.ones(channels), torch.zeros(channels)
    return {
        "weight": ones,
        "bias": zeros,
        "running_mean": zeros,
        "running_var": ones - EPSILON,
        "num_batches_tracked": torch.tensor(0),
    }


MONAI_RESNET = Layout(
    about="MONAI's ResNet of depth 10, 18, 34 or 50, with the default stride 1 of the first convolution",
    encoder="resnet3d",
    source="Hara et al. 2018, arXiv:1708.07632",
    licence="unknown",
    convert=convert,
)
MEDICALNET = Layout(
    about="MedicalNet's ResNets, as resnet_50_23dataset.pth (huggingface.co/TencentMedicalNet)",
    encoder="resnet3d",
    source="Chen et al. 2019, Med3D, arXiv:1904.00625",
    licence="MIT",
    convert=medicalnet,
    axes="",
    intensity={"kind": "mri"},
)

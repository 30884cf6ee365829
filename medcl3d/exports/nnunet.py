"""Pretrained weights and plans for nnU-Net v2, for plain and residual U-Nets with instance norm.

nnU-Net reads arrays with axes z, y, x, medcl3d with axes right, front, head (x, y, z). The spatial axes of
all kernels, strides and sizes are therefore reversed: of a reversed crop, nnU-Net's network computes the
reversed maps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from medcl3d.core.geometry import Triple, triple
from medcl3d.encoders.unet3d import PooledResBlock, UNet3d
from medcl3d.exports.source import SEED, Source
from medcl3d.io.atomic import write_json

NAME = "medcl3dPlans"
CHECKPOINT = "checkpoint.pth"
CONFIGURATION = "3d_fullres"
CONVS_PER_BLOCK = 2
SLOPE = 0.01  # of nnU-Net's leaky ReLU, and of its initialisation
SCHEMES = {"ct": "CTNormalization", "mri": "ZScoreNormalization", "none": "NoNormalization"}


def write(source: Source, out: Path) -> list[str]:
    """Write checkpoint.pth for nnU-Net's `-pretrained_weights`, and the plans of a network that they fit."""
    encoder = fitting_encoder(source)
    decodes = source.network.decoder is not None and _has_usual_kernels(source)
    weights = encoder_weights(source) | (decoder_weights(source) if decodes else fresh_decoder(source))
    number = sum(not name.startswith("decoder.encoder.") for name in weights)
    torch.save({"network_weights": {name: one.clone() for name, one in weights.items()}}, out / CHECKPOINT)
    write_json(out / f"{NAME}.json", plans_of(source, encoder))
    write_json(out / "medcl3d.json", source.public)
    made = "trained" if decodes else "new: nnU-Net's loader requires one, and the run has none that fits"
    theirs = network_name(source).rpartition(".")[2]
    line = f"{number} tensors of {type(encoder).__name__} as nnU-Net's {theirs}; the decoder is {made}"
    return [line, *unlike_normalisation(source.sidecar["intensity"])]


def network_name(source: Source) -> str:
    """The import path of nnU-Net's network."""
    kind = "ResidualEncoderUNet" if source.encoder_fields["residual"] else "PlainConvUNet"
    return f"dynamic_network_architectures.architectures.unet.{kind}"


def fitting_encoder(source: Source) -> UNet3d:
    """The encoder. ConfigError unless an encoder of nnU-Net, plain or residual, computes the same."""
    encoder, fields = source.network.encoder, source.encoder_fields
    remedy = "pretrain `encoder: {unet3d: {resenc: true, norm: instance, strides: [1, ...]}}`"
    if not isinstance(encoder, UNet3d):
        source.refuse("nnunet", f"nnU-Net has no {source.encoder_name}", remedy)
    if fields["residual"] and not fields.get("resenc"):
        why = "unet3d strides its shortcuts by convolutions, nnU-Net's residual blocks by pooling"
        source.refuse("nnunet", why, f"{remedy}, or with residual: false")
    wrong = [
        f"{name} = {fields[name]!r}, nnU-Net has {needed!r}"
        for name, needed in (("norm", "instance"), ("act", "leakyrelu"))
        if fields[name] != needed
    ]
    if max(encoder.strides[0]) > 1:
        wrong.append("the first stage is strided, nnU-Net's is not")
    if wrong:
        source.refuse("nnunet", "; ".join(wrong), remedy)
    return encoder


def encoder_weights(source: Source) -> dict[str, Tensor]:
    """The encoder under nnU-Net's names, which the decoder of its U-Nets repeats."""
    found: dict[str, Tensor] = {}
    encoder = fitting_encoder(source)
    if encoder.stem is not None:
        conv, norm, _ = cast(Any, encoder.stem)
        found |= _conv("encoder.stem.convs.0", reversed_axes(conv.conv.weight), norm.weight, norm.bias)
    stages: Any = encoder.stages
    for i, stage in enumerate(stages):
        for j, block in enumerate(stage):
            if isinstance(block, PooledResBlock):
                found |= _residual_block(block, f"encoder.stages.{i}.blocks.{j}")
            else:
                found |= _block(block, f"encoder.stages.{i}.0.convs", CONVS_PER_BLOCK * j)
    return found | {f"decoder.{name}": tensor for name, tensor in found.items()}


def decoder_weights(source: Source) -> dict[str, Tensor]:
    """The trained decoder, and the head of a segmentation; heads of deep supervision are zero."""
    found: dict[str, Tensor] = {}
    decoder: Any = source.network.decoder
    for s, step in enumerate(decoder.steps):
        weight = reversed_axes(step.up.weight)
        # A map of the same stride is convolved, which is a transposed convolution with stride 1.
        weight = weight.transpose(0, 1) if isinstance(step.up, nn.Conv3d) else weight
        found[f"decoder.transpconvs.{s}.weight"] = weight
        found[f"decoder.transpconvs.{s}.bias"] = step.up.bias.detach()
        found |= _block(step.convolve, f"decoder.stages.{s}.convs", 0)
    if not source.task:
        return found
    channels, head = fitting_encoder(source).channels, cast(Any, source.model).head
    last = len(decoder.steps) - 1
    for s in range(last + 1):
        weight = head.weight.detach() if s == last else torch.zeros(len(head.bias), channels[-s - 2], 1, 1, 1)
        bias = head.bias.detach() if s == last else torch.zeros(len(head.bias))
        found |= {f"decoder.seg_layers.{s}.weight": weight, f"decoder.seg_layers.{s}.bias": bias}
    return found


def fresh_decoder(source: Source) -> dict[str, Tensor]:
    """A decoder with the initial weights of nnU-Net (He et al. 2015), since its loader requires one."""
    encoder = fitting_encoder(source)
    channels, steps, kernels = encoder.channels, _strides(encoder), _kernels(source)
    generator = torch.Generator().manual_seed(SEED)

    def he(*shape: int) -> Tensor:
        return nn.init.kaiming_normal_(torch.empty(shape), a=SLOPE, generator=generator)

    found: dict[str, Tensor] = {}
    for s in range(len(channels) - 1):
        below, width, kernel = channels[-s - 1], channels[-s - 2], kernels[-s - 2]
        found[f"decoder.transpconvs.{s}.weight"] = he(below, width, *reversed(steps[-s - 1]))
        found[f"decoder.transpconvs.{s}.bias"] = torch.zeros(width)
        for c, width_in in enumerate((2 * width, width)):
            weight = he(width, width_in, *reversed(kernel))
            found |= _conv(f"decoder.stages.{s}.convs.{c}", weight, torch.ones(width), torch.zeros(width))
    return found


def reversed_axes(weight: Tensor) -> Tensor:
    """A kernel ``[O, I, x, y, z]`` for axes z, y, x."""
    return weight.detach().permute(0, 1, 4, 3, 2).contiguous()


def _block(block: nn.Module, prefix: str, first: int) -> dict[str, Tensor]:
    """The two convolutions of MONAI's UnetBasicBlock under nnU-Net's names."""
    state = block.state_dict()
    found: dict[str, Tensor] = {}
    for c in (1, 2):
        weight = reversed_axes(state[f"conv{c}.conv.weight"])
        scale, shift = state[f"norm{c}.weight"], state[f"norm{c}.bias"]
        found |= _conv(f"{prefix}.{first + c - 1}", weight, scale, shift)
    return found


def _residual_block(block: PooledResBlock, prefix: str) -> dict[str, Tensor]:
    """The convolutions of a residual block; that of the shortcut, which has no bias, follows its pooling."""
    state = block.state_dict()
    skip = 0 if isinstance(block.pool, nn.Identity) else 1
    names = {1: "conv1", 2: "conv2", 3: f"skip.{skip}"}
    found: dict[str, Tensor] = {}
    for c, name in names.items():
        if f"conv{c}.conv.weight" in state:
            weight = reversed_axes(state[f"conv{c}.conv.weight"])
            scale, shift = state[f"norm{c}.weight"], state[f"norm{c}.bias"]
            found |= _conv(f"{prefix}.{name}", weight, scale, shift, bias=c < 3)
    return found


def _conv(name: str, weight: Tensor, scale: Tensor, shift: Tensor, *, bias: bool = True) -> dict[str, Tensor]:
    """A convolution and its norm; the bias of the convolution is 0, since the norm removes it."""
    conv = {"weight": weight, "bias": weight.new_zeros(len(weight))} if bias else {"weight": weight}
    norm = {"weight": scale.detach(), "bias": shift.detach()}
    modules = {"conv": conv, "norm": norm, "all_modules.0": conv, "all_modules.1": norm}
    return {f"{name}.{m}.{key}": value for m, values in modules.items() for key, value in values.items()}


def _has_usual_kernels(source: Source) -> bool:
    """Whether nnU-Net's decoder has 3x3x3 kernels, as that of medcl3d."""
    return all(kernel == (3, 3, 3) for kernel in _kernels(source)[:-1])


def _kernels(source: Source) -> list[Triple]:
    """Kernel of each stage."""
    stages: Any = fitting_encoder(source).stages
    return [triple(stage[0].conv1.conv.kernel_size) for stage in stages]


def _strides(encoder: UNet3d) -> list[Triple]:
    """Stride of each stage, relative to the one before."""
    before = [(1, 1, 1), *encoder.strides[:-1]]
    return [(a // x, b // y, c // z) for (a, b, c), (x, y, z) in zip(encoder.strides, before, strict=True)]


def plans_of(source: Source, encoder: UNet3d) -> dict[str, Any]:
    """The content of a plans file: the network of the run, at its spacing and patch size."""
    sidecar, intensity = source.sidecar, source.sidecar["intensity"]
    kind = str(intensity["kind"])
    spacing, patch = _back(sidecar["spacing_mm"]), _back(source.patch_size)
    channels = range(source.in_channels)
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    linear, labels = ({**resampling, "order": 1}, {**resampling, "is_seg": True, "order": 1})
    configuration = {
        "data_identifier": f"{NAME}_{CONFIGURATION}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": patch,
        "median_image_size_in_voxels": [float(size) for size in patch],
        "spacing": spacing,
        "normalization_schemes": [SCHEMES.get(kind, "ZScoreNormalization") for _ in channels],
        "use_mask_for_norm": [False for _ in channels],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": labels,
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": linear,
        "architecture": architecture_of(source, encoder),
        "batch_dice": False,
    }
    return {
        "dataset_name": "medcl3d",
        "plans_name": NAME,
        "original_median_spacing_after_transp": spacing,
        "original_median_shape_after_transp": patch,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {CONFIGURATION: configuration},
        "experiment_planner_used": "medcl3d",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(c): intensities(intensity) for c in channels},
    }


def architecture_of(source: Source, encoder: UNet3d) -> dict[str, Any]:
    """The network of the plans."""
    stages: Any = encoder.stages
    depth = (
        {"n_blocks_per_stage": [len(stage) for stage in stages]}
        if encoder.stem is not None
        else {"n_conv_per_stage": [CONVS_PER_BLOCK * len(stage) for stage in stages]}
    )
    return {
        "network_class_name": network_name(source),
        "arch_kwargs": {
            "n_stages": len(stages),
            "features_per_stage": list(encoder.channels),
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [_back(kernel) for kernel in _kernels(source)],
            "strides": [_back(stride) for stride in _strides(encoder)],
            **depth,
            "n_conv_per_stage_decoder": [CONVS_PER_BLOCK] * (len(stages) - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _back(values: Sequence[Any]) -> list[Any]:
    return list(reversed(list(values)))


def intensities(intensity: Mapping[str, Any]) -> dict[str, float]:
    """What nnU-Net's CT normalisation reads: clip to the window of the run, and map it as the run did.

    intensity: that of a run. nnU-Net computes (x - mean) / std.
    """
    low, high = map(float, intensity["window_hu"])
    first, last = map(float, intensity.get("value_range") or (-1, 1))
    std = (high - low) / (last - first)
    return {"min": low, "max": high, "median": (low + high) / 2, "mean": low - first * std, "std": std,
            "percentile_00_5": low, "percentile_99_5": high}  # fmt: skip


def unlike_normalisation(intensity: Mapping[str, Any]) -> list[str]:
    """Warnings if nnU-Net gives the network other intensities than the run did."""
    kind = str(intensity["kind"])
    if kind not in SCHEMES:
        what = f"the run normalised scans of several kinds ({kind}), and the plans take z-scores of all"
        return [f"warning: {what}: edit normalization_schemes for the scans that nnU-Net trains on"]
    if kind == "mri" and intensity.get("value_range"):
        range_of_run = list(intensity["value_range"])
        return [f"warning: the run scaled MR to {range_of_run}, and nnU-Net takes z-scores"]
    return []

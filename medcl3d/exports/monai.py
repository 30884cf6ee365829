"""For MONAI: a bundle of a segmentation, or a pretrained encoder under the names of MONAI's network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medcl3d.encoders.resnet3d import BLOCKS, WIDTHS
from medcl3d.encoders.vit3d import positions
from medcl3d.exports.monai_bundle import write_bundle
from medcl3d.exports.source import Source, file_content
from medcl3d.io.atomic import write_json

State = dict[str, Tensor]
NETS = "monai.networks.nets"


def write(source: Source, out: Path) -> list[str]:
    """Write a bundle; or encoder.safetensors, and network.json with the class and its arguments."""
    if source.task:
        if source.task != "segmentation":
            remedy = "use a segmentation or a pretraining"
            source.refuse("monai", f"a bundle of {source.task} is not written", remedy)
        return write_bundle(source, out)
    if source.encoder_name not in LAYOUTS:
        source.refuse("monai", f"MONAI has no {source.encoder_name}", f"use one of {', '.join(LAYOUTS)}")
    target, arguments, weights = LAYOUTS[source.encoder_name](source)
    (out / "encoder.safetensors").write_bytes(file_content(weights))
    network = {"_target_": f"{NETS}.{target}", **arguments}
    write_json(out / "network.json", json.loads(json.dumps(network)))
    write_json(out / "encoder.json", source.public)
    return [f"{len(weights)} tensors under the names of MONAI's {target}"]


def encoder_state(source: Source) -> State:
    """The weights of the encoder, by their names in it."""
    return dict(source.network.encoder.state_dict())


def resnet(source: Source) -> tuple[str, dict[str, Any], State]:
    """MONAI's ResNet, or SEResNet50 with squeeze and excitation."""
    fields, state = source.encoder_fields, encoder_state(source)
    if fields["norm"] != "batch":
        source.refuse(
            "monai", f"norm = {fields['norm']!r}, MONAI's ResNet has batch norm", "pretrain with norm: batch"
        )
    block, layers = BLOCKS[fields["depth"]]
    if fields["squeeze_excitation"]:
        usual = {"width": 1.0, "stem_stride": 2, "stem_kernel": 7, "max_pool": True}
        other = {name: fields[name] for name, value in usual.items() if fields[name] != value}
        if other:
            source.refuse("monai", f"SEResNet50 has {usual}, not {other}", "pretrain with these values")
        stem = ("conv1.", "bn1.")
        state = {f"layer0.{k}" if k.startswith(stem) else k: v for k, v in state.items()}
        return "SEResNet50", {"spatial_dims": 3, "in_channels": source.in_channels, "num_classes": 2}, state
    arguments = {
        "block": "bottleneck" if block.expansion > 1 else "basic",
        "layers": list(layers),
        "block_inplanes": [max(1, int(base * fields["width"])) for base in WIDTHS],
        "spatial_dims": 3,
        "n_input_channels": source.in_channels,
        "conv1_t_size": fields["stem_kernel"],
        "conv1_t_stride": fields["stem_stride"],
        "no_max_pool": not fields["max_pool"],
        "bias_downsample": False,
        "feed_forward": False,
    }
    return "ResNet", arguments, state


def swin(source: Source) -> tuple[str, dict[str, Any], State]:
    """The encoder `swinViT` of MONAI's SwinUNETR, whose other parts have no weights here."""
    fields = source.encoder_fields
    if fields["patch"] != [2, 2, 2]:
        source.refuse(
            "monai", f"patch = {fields['patch']}, SwinUNETR has [2, 2, 2]", "pretrain with this patch"
        )
    if fields["feature_size"] % 12:
        why = f"feature_size = {fields['feature_size']}, SwinUNETR needs a multiple of 12"
        source.refuse("monai", why, "pretrain with one")
    arguments = {
        "in_channels": source.in_channels,
        "out_channels": 2,
        "feature_size": fields["feature_size"],
        "depths": fields["num_layers"],
        "num_heads": fields["num_heads"],
        "window_size": fields["window_size"],
        "mlp_ratio": fields["mlp_ratio"],
        "downsample": fields["merging"],
        "use_v2": fields["v2"],
    }
    return "SwinUNETR", arguments, encoder_state(source)


def vit(source: Source) -> tuple[str, dict[str, Any], State]:
    """MONAI's ViT for crops of the patch size, whose positions it stores."""
    fields, state = source.encoder_fields, encoder_state(source)
    if fields["num_registers"]:
        source.refuse("monai", "MONAI's ViT has no registers", "pretrain with num_registers: 0")
    width, patch = fields["hidden_size"], fields["patch"]
    renamed = {
        name.replace("patch_embedding.", "patch_embedding.patch_embeddings.", 1): tensor
        for name, tensor in state.items()
    }
    depth, height, breadth = (n // p for n, p in zip(source.patch_size, patch, strict=True))
    renamed["patch_embedding.position_embeddings"] = positions((depth, height, breadth), width)[None].clone()
    for index in range(fields["num_layers"]):  # a norm that only cross-attention uses
        renamed[f"blocks.{index}.norm_cross_attn.weight"] = torch.ones(width)
        renamed[f"blocks.{index}.norm_cross_attn.bias"] = torch.zeros(width)
    arguments = {
        "in_channels": source.in_channels,
        "img_size": list(source.patch_size),
        "patch_size": patch,
        "hidden_size": width,
        "mlp_dim": int(width * fields["mlp_ratio"]),
        "num_layers": fields["num_layers"],
        "num_heads": fields["num_heads"],
        "proj_type": "conv",
        "pos_embed_type": "learnable",
        "spatial_dims": 3,
        "qkv_bias": True,
    }
    return "ViT", arguments, renamed


def dynunet(source: Source) -> tuple[str, dict[str, Any], State]:
    """The contracting path of MONAI's DynUNet, whose other parts have no weights here."""
    fields, strides = source.encoder_fields, source.encoder_fields["strides"]
    stages = range(len(strides))
    if fields["norm"] != "instance" or fields["act"] != "leakyrelu" or len(stages) < 3:
        why = "DynUNet has instance norm, leaky ReLU and at least three stages"
        source.refuse("monai", why, "pretrain with norm: instance and act: leakyrelu")
    if fields["resenc"]:
        source.refuse("monai", "DynUNet has no stem", "pretrain with resenc: false, or export to nnunet")
    if fields["blocks"] not in (1, [1 for _ in stages]):
        source.refuse("monai", "DynUNet has one block per stage", "pretrain with blocks: 1")
    parts = ["input_block", *(f"downsamples.{i}" for i in stages[:-2]), "bottleneck"]
    renamed = {}
    for name, tensor in encoder_state(source).items():
        _, stage, _, rest = name.split(".", 3)
        renamed[f"{parts[int(stage)]}.{rest}"] = tensor
    arguments = {
        "spatial_dims": 3,
        "in_channels": source.in_channels,
        "out_channels": 2,
        "kernel_size": fields["kernel_sizes"] or [3 for _ in stages],
        "strides": strides,
        "upsample_kernel_size": strides[1:],
        "filters": fields["channels"],
        "res_block": fields["residual"],
    }
    return "DynUNet", arguments, renamed


LAYOUTS: dict[str, Callable[[Source], tuple[str, dict[str, Any], State]]] = {
    "resnet3d": resnet,
    "swin3d": swin,
    "unet3d": dynunet,
    "vit3d": vit,
}
"""Encoder -> class of MONAI, its arguments, and the weights under its names."""

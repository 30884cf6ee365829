"""CT-FM: a residual encoder of MONAI's SegResNetDS, pretrained on CT."""

from __future__ import annotations

from medcl3d.layouts.layout import Converted, Layout, WeightsFile, count, needed, part_of

NETWORK = "a SegResEncoder of MONAI"
PARTS = ("backbone.encoder.", "backbone.", "trunk.encoder.", "encoder.", "")
"""Prefixes of the encoder in checkpoints of CT-FM's pretraining, and in the published networks."""


def convert(file: WeightsFile) -> Converted:
    """MONAI's SegResEncoder, of any width and depth, with batch or instance norm."""
    prefix = next((part for part in PARTS if f"{part}conv_init.weight" in file.tensors), "")
    stem = needed(file.tensors, f"{prefix}conv_init.weight", NETWORK)
    inside = {
        name: tensor
        for name, tensor in part_of(file.tensors, prefix).items()
        if name.startswith(("conv_init.", "layers."))
    }
    levels = count(inside, r"layers\.(\d+)\.blocks\.")
    blocks = [count(inside, rf"layers\.{level}\.blocks\.(\d+)\.") for level in range(levels)]
    norm = "batch" if "layers.0.blocks.0.norm1.running_mean" in inside else "instance"
    arguments = {
        "spatial_dims": 3,
        "in_channels": stem.shape[1],
        "init_filters": len(stem),
        "blocks_down": blocks,
        "norm": norm,
    }
    fields = {
        "path": "monai.networks.nets.segresnet_ds:SegResEncoder",
        "arguments": arguments,
        "channels": [len(stem) * 2**level for level in range(levels)],
        "strides": [2**level for level in range(levels)],
    }
    weights = {f"wrapped.{name}": tensor for name, tensor in inside.items()}
    used = frozenset(f"{prefix}{name}" for name in inside)
    return Converted({"module": fields}, stem.shape[1], weights, used)


CT_FM = Layout(
    about="CT-FM's SegResEncoder, or that of its SegResNet (huggingface.co/project-lighter)",
    encoder="module",
    source="Pai et al. 2025, Vision Foundation Models for Computed Tomography, arXiv:2501.09001",
    licence="Apache-2.0",
    convert=convert,
    axes="SPL",
    intensity={"kind": "ct", "window_hu": [-1024.0, 2048.0], "value_range": [0.0, 1.0]},
)

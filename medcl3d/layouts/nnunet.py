"""Encoders of nnU-Net v2 and nnssl: residual ones (ResEnc) and plain ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from medcl3d.core.errors import ConfigError
from medcl3d.layouts.layout import Converted, Layout, State, WeightsFile, count, needed, part_of

NETWORK = "a U-Net of nnU-Net"
ENCODER = "encoder."
CONVS = {"conv": "conv{}.conv", "norm": "norm{}"}
"""Modules of nnU-Net's convolutions, and of the two of a block here."""


def convert(file: WeightsFile) -> Converted:
    """The encoder of a ResidualEncoderUNet or a PlainConvUNet with instance norm.

    Biases before a norm are left out, since the norm removes them. Strides are those of the plans or the
    adaptation plan in the file; without one, 2 in all stages but the first.
    """
    tensors = part_of(file.tensors, ENCODER) or dict(file.tensors)
    first = _first_kernel(tensors)
    stages = count(tensors, r"stages\.(\d+)\.")
    found: State = {}
    used: set[str] = set()
    residual = "stem.convs.0.conv.weight" in tensors
    if residual:
        _copy(tensors, "stem.convs.0", {"conv": "stem.0.conv", "norm": "stem.1"}, found, used)
    blocks = [
        _residual_stage(tensors, s, found, used) if residual else _plain_stage(tensors, s, found, used)
        for s in range(stages)
    ]
    kernels = [found[f"stages.{s}.0.conv1.conv.weight"] for s in range(stages)]
    fields = {
        "channels": [len(kernel) for kernel in kernels],
        "strides": _strides(file.others, stages),
        "blocks": blocks,
        "kernel_sizes": [list(kernel.shape[2:]) for kernel in kernels],
        "residual": residual,
        "norm": "instance",
        "resenc": residual,
    }
    whole = {name for name in file.tensors if name.startswith(ENCODER)}
    names = {f"{ENCODER}{name}" for name in used} if whole else used
    return Converted({"unet3d": fields}, first.shape[1], found, frozenset(names))


def _first_kernel(tensors: Mapping[str, Tensor]) -> Tensor:
    for name in ("stem.convs.0.conv.weight", "stages.0.0.convs.0.conv.weight"):
        if name in tensors:
            return tensors[name]
    return needed(tensors, "encoder.stages.0.0.convs.0.conv.weight", NETWORK)


def _copy(
    tensors: Mapping[str, Tensor], prefix: str, modules: Mapping[str, str], found: State, used: set[str]
) -> None:
    """Copy a convolution with its norm; `modules`: names in the file and here."""
    for theirs, ours in modules.items():
        for key in ("weight", "bias"):
            name = f"{prefix}.{theirs}.{key}"
            repeated = f"{prefix}.all_modules.{0 if theirs == 'conv' else 1}.{key}"
            used |= {one for one in (name, repeated) if one in tensors}
            if theirs == "norm" or key == "weight":
                found[f"{ours}.{key}"] = needed(tensors, name, NETWORK)


def _residual_stage(tensors: Mapping[str, Tensor], stage: int, found: State, used: set[str]) -> int:
    blocks = count(tensors, rf"stages\.{stage}\.blocks\.(\d+)\.")
    for block in range(blocks):
        theirs, ours = f"stages.{stage}.blocks.{block}", f"stages.{stage}.{block}"
        if f"{theirs}.conv3.conv.weight" in tensors:
            problem, remedy = "has bottleneck blocks, which unet3d does not have", "use basic blocks"
            raise ConfigError(problem=problem, remedy=remedy)
        for number in (1, 2):
            _copy(tensors, f"{theirs}.conv{number}", _ours(ours, number), found, used)
        # The shortcut: a pooling without weights comes first if the block is strided.
        shortcut = next((i for i in (0, 1) if f"{theirs}.skip.{i}.conv.weight" in tensors), None)
        if shortcut is not None:
            _copy(tensors, f"{theirs}.skip.{shortcut}", _ours(ours, 3), found, used)
    return blocks


def _plain_stage(tensors: Mapping[str, Tensor], stage: int, found: State, used: set[str]) -> int:
    convs = count(tensors, rf"stages\.{stage}\.0\.convs\.(\d+)\.")
    if convs % 2:
        problem = f"stage {stage} has {convs} convolutions, and blocks of unet3d have two"
        raise ConfigError(problem=problem, remedy="use a network with an even number")
    for conv in range(convs):
        ours = _ours(f"stages.{stage}.{conv // 2}", conv % 2 + 1)
        _copy(tensors, f"stages.{stage}.0.convs.{conv}", ours, found, used)
    return convs // 2


def _ours(block: str, number: int) -> dict[str, str]:
    return {theirs: f"{block}.{ours.format(number)}" for theirs, ours in CONVS.items()}


def _strides(others: Mapping[str, Any], stages: int) -> list[Any]:
    """Strides of the stages along right, front and head: plans have the reverse order."""
    for plan in _architectures(others):
        strides = plan.get("strides")
        if isinstance(strides, list) and len(strides) == stages:
            return [list(reversed(s)) if isinstance(s, list | tuple) else s for s in strides]
    return [1, *[2] * (stages - 1)]


def _architectures(others: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Arguments of networks in a checkpoint of nnU-Net (its plans) or nnssl (its adaptation plan)."""
    adapted = others.get("nnssl_adaptation_plan") or {}
    yield (adapted.get("architecture_plans") or {}).get("arch_kwargs") or {}
    given = others.get("init_args") or {}
    configurations = (given.get("plans") or {}).get("configurations") or {}
    chosen = configurations.get(given.get("configuration")) or {}
    yield (chosen.get("architecture") or {}).get("arch_kwargs") or {}


NNUNET = Layout(
    about="a checkpoint of nnU-Net v2, ResEnc or plain, with instance norm",
    encoder="unet3d",
    source="Isensee et al. 2021, doi:10.1038/s41592-020-01008-z; Isensee et al. 2024, arXiv:2404.09556",
    licence="unknown",
    convert=convert,
    axes="SAR",
)
OPENMIND = Layout(
    about="nnssl's ResEnc-L, pretrained on the head and neck MR of OpenMind (huggingface.co/MIC-DKFZ)",
    encoder="unet3d",
    source="Wald et al. 2024, arXiv:2412.17041",
    licence="unknown",
    convert=convert,
    axes="SAR",
    spacing_mm=(1.0, 1.0, 1.0),
    intensity={"kind": "mri"},
)

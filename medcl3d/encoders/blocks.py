"""Normalisation, activation and pooling shared by the convolutional encoders and the decoder."""

from __future__ import annotations

from math import gcd
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from medcl3d.config.suggestions import require_one_of

Norm = Literal["group", "batch", "instance"]
Act = Literal["relu", "leakyrelu", "gelu"]

MAX_GROUPS = 8


def norm_layer(norm: Norm, channels: int) -> tuple[str, dict[str, Any]]:
    """MONAI's name of a normalisation with learned scale and shift, for `channels` (or a multiple of it).

    `group` uses at most 8 groups that divide the channels, of two channels or more: with groups of one
    channel it would be instance norm, which removes the mean of each channel. Source: Wu and He 2018.
    """
    require_one_of("norm", norm, Norm)
    if norm == "group":
        return "group", {"num_groups": gcd(MAX_GROUPS, channels // 2 if channels % 2 == 0 else channels)}
    return ("instance", {"affine": True}) if norm == "instance" else ("batch", {})


def act_layer(act: Act) -> tuple[str, dict[str, Any]]:
    """MONAI's name of an activation; the leaky slope is nnU-Net's 0.01."""
    require_one_of("act", act, Act)
    options: dict[Act, dict[str, Any]] = {
        "relu": {"inplace": True},
        "leakyrelu": {"inplace": True, "negative_slope": 0.01},
        "gelu": {},
    }
    return act, options[act]


def global_average(feature_map: Float[Tensor, "B C D H W"]) -> Float[Tensor, "B C"]:
    """Mean over space: ``[B, C, D, H, W] -> [B, C]``, in float32 or better (half precision is too coarse)."""
    return feature_map.mean(dim=(2, 3, 4), dtype=torch.promote_types(feature_map.dtype, torch.float32))

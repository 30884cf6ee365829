"""An encoder, with a decoder if the objective or the task needs full resolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from medcl3d.config.field_types import Choice
from medcl3d.core.embeddings import Features
from medcl3d.core.errors import ConfigError, inside
from medcl3d.core.geometry import Triple
from medcl3d.encoders import ENCODERS, HasLayers
from medcl3d.encoders.blocks import Act, Norm
from medcl3d.encoders.decoder import Decoder


class Network(nn.Module):
    """Features of ``[B, C, D, H, W]``; `decoded` is set if the network has a decoder.

    encoder  module with `channels`, `strides` (cumulative, finest first), `num_features`
    decoder  module with `out_channels` and ``forward(x, maps)``, or None
    """

    def __init__(self, encoder: nn.Module, decoder: Decoder | None = None):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, x: Float[Tensor, "B C D H W"]) -> Features:
        features: Features = self.encoder(x)
        if self.decoder is None:
            return features
        return Features(features.pooled, features.maps, self.decoder(x, features.maps))

    @property
    def num_features(self) -> int:
        """Width of `pooled`."""
        return cast(int, self.encoder.num_features)

    @property
    def minimum_multiple(self) -> Triple:
        """The divisor of each axis of a crop: the encoder's coarsest stride."""
        return cast(tuple[Triple, ...], self.encoder.strides)[-1]


def build_network(choice: Choice, in_channels: int, *, decoder: bool) -> Network:
    """Build the configured network. A decoder uses the encoder's norm and activation, if it has them."""
    with inside("encoder"):
        encoder = ENCODERS.build(choice, in_channels)
    if not decoder:
        return Network(encoder)
    norm = cast(Norm, choice.fields.get("norm", "group"))
    act = cast(Act, choice.fields.get("act", "leakyrelu"))
    return Network(encoder, Decoder(in_channels, encoder.channels, encoder.strides, norm=norm, act=act))


def check_patch_size(network: Network, patch_size: Sequence[int], field: str = "data.patch_size") -> None:
    """ConfigError with both fields if a patch is not divisible by the encoder's coarsest stride."""
    multiple = network.minimum_multiple
    if any(size % m for size, m in zip(patch_size, multiple, strict=True)):
        nearest = [max(m, round(size / m) * m) for size, m in zip(patch_size, multiple, strict=True)]
        raise ConfigError(
            field,
            list(patch_size),
            f"is not divisible by the coarsest stride of the encoder, {list(multiple)} "
            "(encoder: its strides)",
            f"use {nearest}",
            colon=False,
        )


def layers_of(network: Network, field: str) -> tuple[tuple[str, ...], ...]:
    """Module names of an encoder, by layer.

    ConfigError, with `field` of `train`, if the encoder has no `layers()`.
    """
    encoder = network.encoder
    if isinstance(encoder, HasLayers):
        return encoder.layers()
    problem = f"{type(encoder).__name__} does not name its layers"
    raise ConfigError(f"train.{field}", None, problem, f"implement `layers()`, or leave {field} out")


def forward_flops(network: Network, in_channels: int, patch_size: Sequence[int]) -> int:
    """Operations of one crop's forward pass: two per multiply-add of convolutions and matrix products.

    Only shapes are propagated, on PyTorch's `meta` device; weights and running statistics do not change.
    """
    state = (*network.named_parameters(), *network.named_buffers())
    shapes = {name: tensor.detach().to("meta") for name, tensor in state}
    crops = torch.empty((2, in_channels, *patch_size), device="meta")  # batch norm needs two values
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        functional_call(network, shapes, (crops,))
    return int(counter.get_total_flops()) // len(crops)

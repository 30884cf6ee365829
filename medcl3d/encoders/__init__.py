"""Networks that turn a volume into features, one per file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from jaxtyping import Float

from medcl3d.config.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from medcl3d.core.embeddings import Features
    from medcl3d.core.geometry import Triple
    from medcl3d.encoders.module import ModuleEncoder as ModuleEncoder
    from medcl3d.encoders.resnet3d import ResNet3d as ResNet3d
    from medcl3d.encoders.swin3d import Swin3d as Swin3d
    from medcl3d.encoders.unet3d import UNet3d as UNet3d
    from medcl3d.encoders.vit3d import ViT3d as ViT3d
    from medcl3d.encoders.whole_unet3d import WholeUNet3d as WholeUNet3d

ENCODERS = Registry("encoder", __name__, owner="encoder.{}")


class Encoder(Protocol):
    """The interface of an encoder: a module that turns volumes ``[B, C, D, H, W]`` into `Features`.

    num_features  width of `pooled`
    channels      of each map, finest first
    strides       of each map along each axis, cumulative, finest first

    Some encoders have further members: those of `HasLayers`, `DropsTokens` and `EmbedsPatches`.
    """

    num_features: int
    channels: tuple[int, ...]
    strides: tuple[Triple, ...]

    def forward(self, x: Float[Tensor, "B C D H W"]) -> Features:
        """The features of volumes."""


@runtime_checkable
class HasLayers(Protocol):
    """An encoder with named layers, which `train.layer_decay` and checkpointing need."""

    def layers(self) -> tuple[tuple[str, ...], ...]:
        """Module names by layer, from the input on."""


@runtime_checkable
class DropsTokens(Protocol):
    """An encoder that can drop the tokens of masked blocks: ``forward(x, visible)``."""

    drops_tokens: bool


@runtime_checkable
class EmbedsPatches(Protocol):
    """An encoder each of whose voxels of a map describes the block of voxels that it covers.

    Strided convolutions with padding are centred on the first voxel of the block instead.
    """

    embeds_patches: bool


@runtime_checkable
class ShiftsMaps(Protocol):
    """An encoder with maps whose first voxel is centred on voxel `shifts[stride]` of the crop.

    As after pooling without padding in front.
    """

    shifts: Mapping[Triple, float]


def centre_of(encoder: nn.Module, stride: Triple) -> tuple[float, float, float]:
    """Where in a crop, in voxels, the first voxel of a map with this stride is centred."""
    if isinstance(encoder, ShiftsMaps) and stride in encoder.shifts:
        return (encoder.shifts[stride],) * 3
    if isinstance(encoder, EmbedsPatches) and encoder.embeds_patches:
        x, y, z = stride
        return (x - 1) / 2, (y - 1) / 2, (z - 1) / 2
    return 0.0, 0.0, 0.0


def drops_tokens(encoder: nn.Module) -> bool:
    """Whether an encoder can drop the tokens of masked blocks."""
    return isinstance(encoder, DropsTokens) and encoder.drops_tokens


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """A registered class or function, imported on first use."""
        return ENCODERS.attribute(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *ENCODERS.attributes()})

"""The layers of a network from its input on."""

from __future__ import annotations

from collections.abc import Iterable

from medcl3d.core.errors import ConfigError
from medcl3d.encoders import HasLayers
from medcl3d.encoders.network import Network


def layers_of(network: Network, field: str) -> tuple[tuple[str, ...], ...]:
    """Module names of an encoder, by layer.

    ConfigError, with `field` of `train`, if the encoder has no `layers()`.
    """
    encoder = network.encoder
    if not isinstance(encoder, HasLayers):
        raise ConfigError(
            f"train.{field}",
            None,
            f"{type(encoder).__name__} does not name its layers",
            f"implement `layers()`, or leave {field} out",
        )
    return encoder.layers()


def _is_in(name: str, pieces: Iterable[str]) -> bool:
    return any(name == piece or name.startswith(f"{piece}.") for piece in pieces)

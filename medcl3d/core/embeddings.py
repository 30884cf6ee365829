"""Features of a network, embeddings with their keys, and the loss of a batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from medcl3d.core.errors import DataError
from medcl3d.core.keys import Keys


@dataclass(frozen=True)
class Features:
    """The output of a network for a batch of volumes.

    pooled   ``[B, F]``
    maps     feature maps ``[B, C_i, D_i, H_i, W_i]``, finest first
    decoded  the decoder's map at full resolution ``[B, C, D, H, W]``, where there is a decoder
    """

    pooled: Float[Tensor, "B F"]
    maps: tuple[Float[Tensor, "B _ _ _ _"], ...]
    decoded: Float[Tensor, "B _ _ _ _"] | None = None


# A pytree, as `torch.export` and the ONNX exporter need; it stays a dataclass, whose shapes tests check.
torch.export.register_dataclass(Features, serialized_type_name="medcl3d.Features")


@dataclass(frozen=True)
class Embeddings:
    """Vectors that each depend on their own sample alone, and what is known of each.

    z     ``Float[N, D]``
    keys  one row a vector
    """

    z: Float[Tensor, "N E"]
    keys: Keys

    def __getitem__(self, chosen: slice | Shaped[Tensor, " _"]) -> Embeddings:
        return Embeddings(self.z[chosen], self.keys[chosen])

    @staticmethod
    def cat(parts: Iterable[Embeddings]) -> Embeddings:
        """Rows of several chunks of a batch, one after the other."""
        parts = list(parts)
        return Embeddings(torch.cat([part.z for part in parts]), Keys.cat(part.keys for part in parts))


Embedded = dict[str, Embeddings]
"""What an objective's loss needs of a batch, by name: `online` rows carry a gradient, others what else it
compares with."""


@dataclass(frozen=True)
class Loss:
    """What an objective returns: the value to descend, and numbers to log (already global).

    required: numbers without which the value is not finite, to be checked if it is not.
    """

    value: Float[Tensor, ""]
    metrics: dict[str, Float[Tensor, ""]]
    required: tuple[Required, ...] = ()

    def check(self) -> None:
        """DataError if a required number is 0."""
        for one in self.required:
            one.check()


@dataclass(frozen=True)
class Required:
    """A number, the same on all ranks, without which a loss is undefined, and the problem if it is 0."""

    number: Shaped[Tensor, ""]
    problem: str

    def check(self) -> None:
        """DataError if the number is 0."""
        if self.number == 0:
            raise DataError(self.problem)


def require(number: Shaped[Tensor, ""], problem: str) -> tuple[Required, ...]:
    """DataError if a number on the CPU is 0. Reading one on another device would wait: it is returned."""
    found = Required(number, problem)
    if number.device.type != "cpu":
        return (found,)
    found.check()
    return ()

"""Which blocks of a view are hidden, and how an encoder is kept from seeing through them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medcl3d.objectives.partners import uniform
from medcl3d.training.seeding import Stream
from medcl3d.training.speed import in_recomputation
from medcl3d.types import Features, Keys, Triple, triple


def visible_blocks(keys: Keys, grid: Triple, share_hidden: float) -> Tensor:
    """``Bool[N, 1, d, h, w]``: True where a block is seen; the same share of each view is hidden, at least one block.

    A function of sample and view alone (stream MASK), so that no rank and no chunk of a batch changes it.
    """
    blocks = int(torch.tensor(grid).prod())
    hidden = min(blocks - 1, max(1, round(share_hidden * blocks)))
    number = torch.arange(blocks, device=keys.sample.device).repeat(len(keys))
    each = keys.map(lambda column: column.repeat_interleave(blocks, dim=0))
    order = uniform(replace(each, point=number), Stream.MASK).reshape(len(keys), blocks).argsort(1)
    seen = torch.ones(len(keys), blocks, dtype=torch.bool, device=order.device).scatter_(1, order[:, :hidden], False)
    return seen.reshape(len(keys), 1, *grid)


def at_size(seen: Tensor, size: tuple[int, ...]) -> Tensor:
    """The mask on another grid, ``Bool[N, 1, D, H, W]``: a place is seen where the block that holds its middle is."""
    return F.interpolate(seen.float(), size=size, mode="nearest-exact") > 0.5


def features_of_seen(encoder: nn.Module, voxels: Tensor, seen: Tensor) -> Features:
    """What an encoder makes of the blocks that are seen, alone.

    voxels  ``[N, C, D, H, W]``, 0 where hidden
    seen    ``Bool[N, 1, d, h, w]``, a value each block

    A transformer that can drop tokens drops the hidden ones (MAE, He et al., CVPR 2022). Of any other encoder every convolution
    gives 0 in hidden places at its own resolution, as if it were sparse: without this, kernels that reach into a block smear
    its border over it, layer after layer, and a network learns the mask's shape (SparK, Tian et al., ICLR 2023).
    """
    if getattr(encoder, "drops_tokens", False):
        (stride,) = cast(tuple[Triple], encoder.strides)
        grid = triple(size // s for size, s in zip(voxels.shape[2:], stride, strict=True))
        return cast(Features, encoder(voxels, at_size(seen, grid)))
    with hiding(encoder, seen), in_recomputation(lambda: hiding(encoder, seen)):
        return cast(Features, encoder(voxels))


@contextmanager
def hiding(encoder: nn.Module, seen: Tensor) -> Iterator[None]:
    """Every convolution of an encoder gives 0 where a block is hidden."""

    def hide(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output * at_size(seen, triple(output.shape[2:])).to(output.dtype)

    with ExitStack() as stack:
        for module in encoder.modules():
            if isinstance(module, nn.Conv3d):
                stack.callback(module.register_forward_hook(hide).remove)
        yield

"""Random masks of blocks, and encoders restricted to visible blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from medcl3d.core.embeddings import Features
from medcl3d.core.geometry import Triple, triple
from medcl3d.core.keys import Keys
from medcl3d.distributed.seeding import Stream
from medcl3d.encoders import drops_tokens
from medcl3d.encoders.recompute import in_recomputation
from medcl3d.objectives.partners import uniform


def visible_blocks(keys: Keys, grid: Triple, mask_ratio: float) -> Bool[Tensor, "N 1 d h w"]:
    """``Bool[N, 1, d, h, w]``: True for visible blocks; equally many of each view are masked, at least one.

    A function of sample and view alone (stream MASK), independent of ranks and of chunks of a batch.
    """
    blocks = int(torch.tensor(grid).prod())
    num_masked = min(blocks - 1, max(1, round(mask_ratio * blocks)))
    number = torch.arange(blocks, device=keys.sample.device).repeat(len(keys))
    each = keys.map(lambda column: column.repeat_interleave(blocks, dim=0))
    order = uniform(replace(each, point=number), Stream.MASK).reshape(len(keys), blocks).argsort(1)
    visible = torch.ones(len(keys), blocks, dtype=torch.bool, device=order.device)
    return visible.scatter_(1, order[:, :num_masked], False).reshape(len(keys), 1, *grid)


def at_size(visible: Bool[Tensor, "N 1 _ _ _"], size: tuple[int, ...]) -> Bool[Tensor, "N 1 _ _ _"]:
    """The mask on another grid, ``Bool[N, 1, D, H, W]``: the value of the block at a voxel's centre."""
    return F.interpolate(visible.float(), size=size, mode="nearest-exact") > 0.5


def masked_features(
    encoder: nn.Module, voxels: Float[Tensor, "N C D H W"], visible: Bool[Tensor, "N 1 d h w"]
) -> Features:
    """Features computed from the visible blocks only.

    voxels   ``[N, C, D, H, W]``, 0 in masked blocks
    visible  ``Bool[N, 1, d, h, w]``, one value per block

    A transformer that can drop tokens drops the masked ones (MAE, He et al., CVPR 2022). In any other encoder
    each convolution outputs 0 in masked blocks at its own resolution, like a sparse convolution: otherwise
    features spread from a block's border into it, layer after layer, and the network learns the mask's shape
    (SparK, Tian et al., ICLR 2023).
    """
    if drops_tokens(encoder):
        (stride,) = cast(tuple[Triple], encoder.strides)
        grid = triple(size // s for size, s in zip(voxels.shape[2:], stride, strict=True))
        return cast(Features, encoder(voxels, at_size(visible, grid)))
    with (
        torch.compiler.set_stance("force_eager"),  # compiled code would not call the hooks
        masked_convolutions(encoder, visible),
        in_recomputation(lambda: masked_convolutions(encoder, visible)),
    ):
        return cast(Features, encoder(voxels))


@contextmanager
def masked_convolutions(encoder: nn.Module, visible: Bool[Tensor, "N 1 d h w"]) -> Iterator[None]:
    """Within this context, each convolution of an encoder outputs 0 in masked blocks."""

    def mask(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output * at_size(visible, triple(output.shape[2:])).to(output.dtype)

    with ExitStack() as stack:
        for module in encoder.modules():
            if isinstance(module, nn.Conv3d):
                stack.callback(module.register_forward_hook(mask).remove)
        yield

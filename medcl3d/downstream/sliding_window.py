"""Sliding-window prediction of whole scans with a network for patches, and test-time flips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from medcl3d.core.geometry import Triple
from medcl3d.distributed.precision import autocast


def sliding_window(
    predict: Callable[[Tensor], Tensor],
    volume: Tensor,
    patch_size: Triple,
    *,
    fill: Sequence[float],
    overlap: float = 0.5,
    windows: int = 4,
    device: torch.device | None = None,
) -> Tensor:
    """Predict a volume ``[C, D, H, W]`` by overlapping patches with Gaussian weights.

    predict  ``[B, C, *patch_size]`` -> ``[B, K, *patch_size]``
    fill     one value per channel, to pad a volume smaller than a patch, evenly on both sides
    overlap  fraction of a patch that overlaps the next one; windows: number of patches at once
    device   device for the prediction of patches; the sum is on the device of the volume

    Returns ``[K, D, H, W]``. Source: Isensee et al. 2021, nnU-Net (Gaussian importance weighting).
    """
    shape = volume.shape[1:]
    before = [max(0, p - n) // 2 for p, n in zip(patch_size, shape, strict=True)]
    size = [max(p, n) for p, n in zip(patch_size, shape, strict=True)]
    d, h, w = (slice(b, b + n) for b, n in zip(before, shape, strict=True))
    result = sliding_window_inference(
        padded(volume, before, size, fill)[None],
        patch_size,
        windows,
        predict,
        overlap=overlap,
        mode="gaussian",
        sw_device=device,
        device=volume.device,
    )
    assert isinstance(result, Tensor)
    return result[0, :, d, h, w]


def padded(volume: Tensor, before: Sequence[int], size: Sequence[int], fill: Sequence[float]) -> Tensor:
    """A volume ``[C, D, H, W]`` in one of `size` voxels, `before` voxels from its start.

    fill: the value of the other voxels, one per channel
    """
    result = volume.new_empty((len(volume), *size))
    result[:] = torch.as_tensor(fill, dtype=volume.dtype, device=volume.device)[:, None, None, None]
    d, h, w = (slice(b, b + n) for b, n in zip(before, volume.shape[1:], strict=True))
    result[:, d, h, w] = volume
    return result


def probabilities_of(
    model: nn.Module, device: torch.device, dtype: torch.dtype | None
) -> Callable[[Tensor], Tensor]:
    """`predict` for `sliding_window`: the softmax of a model in float32.

    dtype: as in autocast, None for float32.
    """

    def predict(patches: Tensor) -> Tensor:
        with autocast(device, dtype):
            logits: Tensor = model(patches)
        return logits.float().softmax(dim=1)

    return predict


def mean_of_flips(
    predict: Callable[[Tensor], Tensor], flips: tuple[bool, bool, bool]
) -> Callable[[Tensor], Tensor]:
    """Average `predict` over mirror images of a patch along all combinations of the chosen axes d, h, w.

    predict  ``[B, C, D, H, W]`` -> ``[B, K, D, H, W]``, called 2^n times for n axes; unchanged for none

    Patches are mirrored, not the volume, so that windows do not move: a network that commutes with mirroring
    gives the same prediction. Only the sum is stored. Source: Isensee et al. 2021, nnU-Net (test-time
    augmentation by mirroring).
    """
    axes = [2 + axis for axis, chosen in enumerate(flips) if chosen]
    mirrorings = [chosen for count in range(1, len(axes) + 1) for chosen in combinations(axes, count)]
    if not mirrorings:
        return predict

    def mean(patches: Tensor) -> Tensor:
        total = predict(patches)
        for chosen in mirrorings:
            total = total + predict(patches.flip(chosen)).flip(chosen)
        return total / (1 + len(mirrorings))

    return mean

"""Windows that cover a scan, and the weighted mean of feature maps over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from monai.data.utils import compute_importance_map
from torch import Tensor, nn

from medcl3d.core.device import to_device
from medcl3d.core.embeddings import Features
from medcl3d.core.geometry import Triple, triple
from medcl3d.distributed.precision import autocast
from medcl3d.downstream.sliding_window import padded

WHOLE_VOXELS: Triple = (1, 1, 1)
MIN_IMPORTANCE = 1e-3


@dataclass(frozen=True)
class Windows:
    """Windows that cover a padded volume.

    before  voxels padded in front, per axis
    size    of the padded volume
    """

    starts: list[Triple]
    before: Triple
    size: Triple


def covering_windows(shape: Sequence[int], patch: Triple, overlap: float, multiple: Triple) -> Windows:
    """The fewest evenly spread windows with this overlap whose starts are multiples of `multiple`."""
    before, size, starts = [], [], []
    for length, window, step in zip(shape, patch, multiple, strict=True):
        rest = -(-max(0, length - window) // step) * step  # the last start, rounded up to a multiple
        number = 1 + int(np.ceil(rest / max(1.0, window * (1 - overlap))))
        size.append(window + rest)
        before.append((size[-1] - length) // 2)
        starts.append([round(at) * step for at in np.linspace(0, rest // step, number)])
    return Windows([triple(start) for start in product(*starts)], triple(before), triple(size))


class MeanMap:
    """The mean of one feature map over windows whose starts are multiples of its stride, Gaussian weights."""

    def __init__(self, channels: int, windows: Windows, patch: Triple, stride: Triple):
        self.stride, self.before = stride, windows.before
        grid = [n // s for n, s in zip(windows.size, stride, strict=True)]
        self.cells = triple(n // s for n, s in zip(patch, stride, strict=True))
        importance = compute_importance_map(self.cells, mode="gaussian", sigma_scale=0.125)
        self.importance = importance.float().clamp(min=MIN_IMPORTANCE)[..., None]
        self.total, self.weight = torch.zeros(*grid, channels), torch.zeros(*grid, 1)

    def add(self, start: Triple, values: Tensor) -> None:
        """Add the map ``[C, d, h, w]`` of the window that starts at this voxel of the padded volume."""
        place = tuple(
            slice(a // s, a // s + n) for a, s, n in zip(start, self.stride, self.cells, strict=True)
        )
        self.total[place] += values.float().cpu().movedim(0, -1) * self.importance
        self.weight[place] += self.importance

    def mean(self) -> Tensor:
        """``Float32[D, H, W, C]``: the mean."""
        return self.total / self.weight


def mean_maps(
    found: Iterable[tuple[Triple, Features]],
    maps: Callable[[Features], Sequence[tuple[Tensor, Triple]]],
    windows: Windows,
    patch: Triple,
) -> list[MeanMap]:
    """The means over all windows of the maps ``[1, C, d, h, w]`` that `maps` returns with their strides."""
    means: list[MeanMap] = []
    for start, features in found:
        chosen = maps(features)
        means = means or [MeanMap(values.shape[1], windows, patch, stride) for values, stride in chosen]
        for mean, (values, _) in zip(means, chosen, strict=True):
            mean.add(start, values[0])
    return means


@torch.no_grad()
def features_of_windows(
    network: nn.Module,
    volume: Tensor,
    fill: Sequence[float],
    windows: Windows,
    patch: Triple,
    at_once: int,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Iterator[tuple[Triple, Features]]:
    """The start of each window of a volume ``[C, D, H, W]``, and its features with a batch axis of 1.

    fill   one value per channel, outside the volume
    dtype  as in autocast, None for float32
    """
    voxels = padded(volume, windows.before, windows.size, fill)
    for first in range(0, len(windows.starts), at_once):
        starts = windows.starts[first : first + at_once]
        boxes = [tuple(slice(a, a + n) for a, n in zip(start, patch, strict=True)) for start in starts]
        crops = torch.stack([voxels[(slice(None), *box)] for box in boxes])
        with autocast(device, dtype):
            features: Features = network(to_device(crops, device))
        for i, start in enumerate(starts):
            one = slice(i, i + 1)
            decoded = None if features.decoded is None else features.decoded[one]
            yield start, Features(features.pooled[one], tuple(m[one] for m in features.maps), decoded)

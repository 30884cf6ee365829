"""Features at single voxels of a stored scan: feature maps by sliding window, interpolated linearly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from medcl3d.config.field_types import STRICT, PositiveInt
from medcl3d.core.embeddings import Features
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.core.geometry import Triple, triple
from medcl3d.downstream.windows import WHOLE_VOXELS, covering_windows, features_of_windows, mean_maps
from medcl3d.encoders import centre_of
from medcl3d.encoders.network import Network
from medcl3d.store.store import Store

VALUES_AT_ONCE = 1 << 25
"""Numbers in memory at a time while all voxels of a scan are described or classified (128 MiB)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VoxelFeatures:
    """How the features of a voxel are computed.

    maps     which feature maps are concatenated: `encoder` (all maps of the encoder), `decoded` (that of the
             decoder, if pretraining trained one), or `all` of these
    overlap  fraction of a window that the next one covers too, at least
    windows  number of windows computed at once

    Windows have the size of a patch, and their starts are multiples of the coarsest stride. Each map is
    accumulated on its own grid with Gaussian weights, and interpolated linearly at the voxel between the
    centres of its receptive fields. The fine maps have texture at the voxel, the coarse ones its
    surroundings; a probe standardises every feature and chooses among them. Source: multi-scale voxel
    features as in vox2vec (Goncharov et al., MICCAI 2023).
    """

    maps: Literal["all", "encoder", "decoded"] = "all"
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.25
    windows: PositiveInt = 8


@plain_dataclass(frozen=True)
class FeatureMap:
    """A map of a whole scan: voxel i of an axis is centred on voxel i * stride + centre - before.

    values  ``Float32[d, h, w, C]``
    centre  of the first voxel of the map in a crop (`centre_of`)
    """

    values: Tensor
    stride: Triple
    before: Triple
    centre: tuple[float, float, float]

    def positions(self, voxels: np.ndarray) -> np.ndarray:
        """Positions ``Float64[N, 3]`` in the map of voxels of the scan."""
        found: np.ndarray = (voxels + np.array(self.before) - np.array(self.centre)) / np.array(self.stride)
        return found

    def interpolated(self, values: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
        """``Float32[K, D, H, W]``: values ``[K, d, h, w]`` on the map's grid, at a box of voxels."""
        if self.stride == WHOLE_VOXELS:
            box = (slice(a + n, b + n) for (a, b), n in zip(spans, self.before, strict=True))
            return values[(slice(None), *box)]
        rows, columns, last = (self._along(axis, np.arange(a, b)) for axis, (a, b) in enumerate(spans))
        values = torch.einsum("ia,kabc->kibc", rows, values)
        return (columns @ values) @ last.T

    def _along(self, axis: int, voxels: np.ndarray) -> Tensor:
        """``Float32[N, n]``: weights of the map's n voxels at N positions of one axis of the scan."""
        number = self.values.shape[axis]
        place = (voxels + self.before[axis] - self.centre[axis]) / self.stride[axis]
        low, part = _neighbours(place, number)
        weights = np.zeros((len(voxels), number), dtype=np.float32)
        rows = np.arange(len(voxels))
        weights[rows, low] = 1 - part
        weights[rows, np.minimum(low + 1, number - 1)] += part.astype(np.float32)
        return torch.from_numpy(weights)

    def at(self, voxels: np.ndarray) -> Tensor:
        """``Float32[N, C]``: linear interpolation; beyond the outermost voxels the map is constant."""
        sizes = self.values.shape[:3]
        flat = self.values.reshape(-1, self.values.shape[3])
        low, part = zip(
            *(_neighbours(place, n) for place, n in zip(self.positions(voxels).T, sizes, strict=True)),
            strict=True,
        )
        found = torch.zeros(len(voxels), flat.shape[1])
        for corner in range(8):
            index, weight = np.zeros(len(voxels), dtype=np.int64), np.ones(len(voxels))
            for axis in range(3):
                upper = corner >> axis & 1
                index = index * sizes[axis] + np.minimum(low[axis] + upper, sizes[axis] - 1)
                weight = weight * (part[axis] if upper else 1 - part[axis])
            if weight.any():  # a map of full resolution has one corner with a weight
                found += flat[torch.from_numpy(index)] * torch.from_numpy(weight.astype(np.float32))[:, None]
        return found


def _neighbours(place: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The lower neighbour of each position on an axis of `number` voxels, and the weight of the upper one."""
    inside = np.clip(place, 0, number - 1)
    low = np.floor(inside).astype(np.int64)
    return low, inside - low


@plain_dataclass(frozen=True)
class ScanFeatures:
    """Features of all voxels of one scan."""

    shape: Triple
    maps: tuple[FeatureMap, ...]

    @property
    def parts(self) -> tuple[int, ...]:
        """Number of features of each map."""
        return tuple(int(one.values.shape[3]) for one in self.maps)

    def at(self, voxels: np.ndarray) -> Tensor:
        """``Float32[N, F]`` of voxels ``[N, 3]``, whose positions may be fractions."""
        return torch.cat([one.at(voxels) for one in self.maps], dim=1)

    def classify(self, weight: Tensor, bias: Tensor) -> np.ndarray:
        """``Int16[D, H, W]``: the class with the highest score of a linear model ``[F, K]``, ``[K]``.

        Interpolation and model are both linear, so each map is weighted on its own grid, and the scores are
        interpolated, one slab of the scan at a time.
        """
        parts = torch.split(weight, list(self.parts))
        scores = [
            (part.T @ one.values.reshape(-1, len(part)).T).reshape(-1, *one.values.shape[:3])
            for one, part in zip(self.maps, parts, strict=True)
        ]
        depth, height, width = self.shape
        found = np.empty(self.shape, dtype=np.int16)
        slab = max(1, VALUES_AT_ONCE // (height * width * len(bias)))
        for start in range(0, depth, slab):
            stop = min(depth, start + slab)
            total = bias[:, None, None, None].repeat(1, stop - start, height, width)
            for one, score in zip(self.maps, scores, strict=True):
                total += one.interpolated(score, ((start, stop), (0, height), (0, width)))
            found[start:stop] = total.argmax(0).numpy()
        return found


class DenseEncoder:
    """A frozen network that describes the voxels of stored scans.

    patch_size  voxels of a window
    dtype       as in autocast, None for float32

    ConfigError if the configured maps do not exist.
    """

    def __init__(
        self,
        network: Network,
        store: Store,
        options: VoxelFeatures,
        patch_size: Triple,
        device: torch.device,
        dtype: torch.dtype | None,
    ):
        self.check(network, options)
        self.network, self.store, self.options = network, store, options
        self.patch_size, self.device, self.dtype = patch_size, device, dtype

    @staticmethod
    def check(network: Network, options: VoxelFeatures) -> None:
        """ConfigError if the configured maps do not exist."""
        if options.maps == "decoded" and network.decoder is None:
            raise ConfigError(
                "voxel_features.maps = decoded: the encoder has no decoder; use encoder, or an objective "
                "that trains a decoder"
            )

    @property
    def decodes(self) -> bool:
        """Whether the decoder's map is among the features."""
        return self.network.decoder is not None and self.options.maps != "encoder"

    def scan(self, scan: int) -> ScanFeatures:
        """The feature maps of a scan. DataError if some are not finite."""
        shape, about, size = (
            triple(self.store.collection.shapes[scan]),
            self.store.scans[scan],
            self.patch_size,
        )
        windows = covering_windows(shape, size, self.options.overlap, self.network.minimum_multiple)
        found = features_of_windows(
            self.network if self.decodes else self.network.encoder,
            torch.from_numpy(self.store.read_volume(scan)),
            about["normalisation"]["fill"],
            windows,
            size,
            self.options.windows,
            self.device,
            self.dtype,
        )
        means = mean_maps(found, self._maps, windows, size)
        result = tuple(
            FeatureMap(one.mean(), one.stride, one.before, centre_of(self.network.encoder, one.stride))
            for one in means
        )
        if not all(bool(one.values.isfinite().all()) for one in result):
            raise DataError(
                f"{self.store.root}: the encoder's features of scan {about['scan']!r} are not finite; use "
                "other weights, or precision float32"
            )
        return ScanFeatures(shape, result)

    def _maps(self, features: Features) -> list[tuple[Tensor, Triple]]:
        """The chosen maps ``[B, C, d, h, w]`` of a batch of windows, with their strides."""
        strides: tuple[Triple, ...] = self.network.encoder.strides  # type: ignore[assignment]
        found = list(zip(features.maps, strides, strict=True)) if self.options.maps != "decoded" else []
        if self.decodes and features.decoded is not None:
            found.append((features.decoded, WHOLE_VOXELS))
        return found

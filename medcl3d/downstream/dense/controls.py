"""Features of voxels without a network: the place in the body, and the intensities around the voxel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from medcl3d.core.geometry import Triple, triple
from medcl3d.store.store import Store

WAVELENGTHS_MM = (400.0, 200.0, 100.0, 50.0, 25.0)
PATCH = 5
CONTROLS = ("place", "intensity", "intensity_place")


class DescribedVoxels(Protocol):
    """Features of the voxels of one scan.

    parts  number of features of each part, as of each map, which count equally in a cosine
    """

    @property
    def shape(self) -> Triple:
        """Voxels of the scan."""

    @property
    def parts(self) -> tuple[int, ...]:
        """Number of features of each part."""

    def at(self, voxels: np.ndarray) -> Tensor:
        """``Float32[N, F]`` of voxels ``[N, 3]``."""


@dataclass(frozen=True)
class Place:
    """The position in body coordinates as sines and cosines of five wavelengths per axis.

    A linear model of them is a smooth map of the body: the prior of an atlas. Source: the random Fourier
    features of Tancik et al. 2020, with fixed frequencies.
    """

    store: Store
    scan: int

    @property
    def shape(self) -> Triple:
        return triple(self.store.collection.shapes[self.scan])

    @property
    def parts(self) -> tuple[int, ...]:
        return (6 * len(WAVELENGTHS_MM),)

    def at(self, voxels: np.ndarray) -> Tensor:
        angle = 2 * np.pi * place_mm(self.store, self.scan, voxels)[:, :, None] / np.array(WAVELENGTHS_MM)
        waves = np.concatenate([np.sin(angle), np.cos(angle)], axis=2)
        return torch.from_numpy(waves.reshape(len(voxels), -1).astype(np.float32))


@dataclass(frozen=True)
class Intensity:
    """The intensities of a cube of 5^3 voxels of the scan around the voxel, continued at the border."""

    store: Store
    scan: int
    padded: np.ndarray  # ``Float32[C, D + 4, H + 4, W + 4]``

    @staticmethod
    def of(store: Store, scan: int) -> Intensity:
        """Read the voxels of a scan."""
        border = PATCH // 2
        widths = [(0, 0), *[(border, border)] * 3]
        return Intensity(store, scan, np.pad(store.read_volume(scan), widths, mode="edge"))

    @property
    def shape(self) -> Triple:
        return triple(self.store.collection.shapes[self.scan])

    @property
    def parts(self) -> tuple[int, ...]:
        return (len(self.padded) * PATCH**3,)

    def at(self, voxels: np.ndarray) -> Tensor:
        sizes = self.padded.shape[1:]
        start = np.ravel_multi_index(voxels.T, sizes)
        offsets = np.ravel_multi_index(np.indices((PATCH,) * 3).reshape(3, -1), sizes)
        index = np.add.outer(np.asarray(start), np.asarray(offsets))
        found = np.take(self.padded.reshape(len(self.padded), -1), index, axis=1)
        return torch.from_numpy(np.moveaxis(found, 0, 1).reshape(len(voxels), -1))


@dataclass(frozen=True)
class Both:
    """The features of two descriptions, one after the other."""

    first: DescribedVoxels
    second: DescribedVoxels

    @property
    def shape(self) -> Triple:
        return self.first.shape

    @property
    def parts(self) -> tuple[int, ...]:
        return (*self.first.parts, *self.second.parts)

    def at(self, voxels: np.ndarray) -> Tensor:
        return torch.cat([self.first.at(voxels), self.second.at(voxels)], dim=1)


def controls_of(store: Store, scan: int) -> dict[str, DescribedVoxels]:
    """The controls of a scan by name."""
    place, intensity = Place(store, scan), Intensity.of(store, scan)
    return {"place": place, "intensity": intensity, "intensity_place": Both(intensity, place)}


def place_mm(store: Store, scan: int, voxels: np.ndarray) -> np.ndarray:
    """``Float64[N, 3]``: body coordinates in mm of voxels of a scan."""
    scans = np.full(len(voxels), scan)
    return store.collection.body.place(scans, store.collection.world(scans, voxels))

"""Features of voxels without a network: the place in the body, and the intensities around the voxel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from medcl3d.core.geometry import Triple, triple
from medcl3d.store.store import Store

WAVELENGTHS_MM = (400.0, 200.0, 100.0, 50.0, 25.0)
PATCH = 5
ENCODER = ""
"""Name of the encoder's features among the sources; the others are controls."""


class DescribedVoxels(Protocol):
    """Features of the voxels of one scan."""

    @property
    def shape(self) -> Triple:
        """Voxels of the scan."""

    @property
    def parts(self) -> tuple[int, ...]:
        """Number of features of each part, as of each map; parts count equally in a cosine."""

    @property
    def at(self) -> Callable[[np.ndarray], Tensor]:
        """Function from voxels ``[N, 3]`` to features ``Float32[N, F]``."""


@dataclass(frozen=True)
class Control:
    """A description of the voxels of one scan without a network, as `DescribedVoxels`."""

    shape: Triple
    parts: tuple[int, ...]
    at: Callable[[np.ndarray], Tensor]


def place_of(store: Store, scan: int) -> Control:
    """The position in body coordinates as sines and cosines of five wavelengths per axis.

    A linear model of them is a smooth map of the body: the prior of an atlas. Source: the random Fourier
    features of Tancik et al. 2020, with fixed frequencies.
    """

    def at(voxels: np.ndarray) -> Tensor:
        angle = 2 * np.pi * place_mm(store, scan, voxels)[:, :, None] / np.array(WAVELENGTHS_MM)
        waves = np.concatenate([np.sin(angle), np.cos(angle)], axis=2)
        return torch.from_numpy(waves.reshape(len(voxels), -1).astype(np.float32))

    return Control(triple(store.collection.shapes[scan]), (6 * len(WAVELENGTHS_MM),), at)


def intensity_of(store: Store, scan: int) -> Control:
    """The intensities of a cube of 5^3 voxels of the scan around the voxel, continued at the border."""
    widths = [(0, 0), *[(PATCH // 2, PATCH // 2)] * 3]
    padded = np.pad(store.read_volume(scan), widths, mode="edge")
    sizes = padded.shape[1:]
    offsets = np.ravel_multi_index(np.indices((PATCH,) * 3).reshape(3, -1), sizes)

    def at(voxels: np.ndarray) -> Tensor:
        start = np.ravel_multi_index(voxels.T, sizes)
        index = np.add.outer(np.asarray(start), np.asarray(offsets))
        found = np.take(padded.reshape(len(padded), -1), index, axis=1)
        return torch.from_numpy(np.moveaxis(found, 0, 1).reshape(len(voxels), -1))

    return Control(triple(store.collection.shapes[scan]), (len(padded) * PATCH**3,), at)


def sources_of(
    store: Store,
    scan: int,
    features: DescribedVoxels,
    controls: bool,
    place: bool = False,
    features_place: bool = False,
) -> dict[str, DescribedVoxels]:
    """The encoder's features of a scan, and with `controls` those without a network, by name.

    place           with the place alone too
    features_place  also the encoder's features and the place together
    """
    found: dict[str, DescribedVoxels] = {ENCODER: features}
    if features_place:
        found |= {"features_place": _joined(features, place_of(store, scan))}
    if controls:
        where, intensity = place_of(store, scan), intensity_of(store, scan)
        found |= {"place": where} if place else {}
        found |= {"intensity": intensity, "intensity_place": _joined(intensity, where)}
    return found


def _joined(first: DescribedVoxels, second: DescribedVoxels) -> Control:
    """The features of both, one after the other."""
    return Control(
        first.shape,
        (*first.parts, *second.parts),
        lambda voxels: torch.cat([first.at(voxels), second.at(voxels)], dim=1),
    )


def place_mm(store: Store, scan: int, voxels: np.ndarray) -> np.ndarray:
    """``Float64[N, 3]``: body coordinates in mm of voxels of a scan."""
    scans = np.full(len(voxels), scan)
    return store.collection.body.place(scans, store.collection.world(scans, voxels))

"""Dense features of the shown scans: colours from their principal components, and nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medcl3d.core.geometry import Triple, triple
from medcl3d.downstream.dense.nearest_voxel import Scale, nearest
from medcl3d.downstream.dense.voxel_features import DenseEncoder
from medcl3d.downstream.dense.voxel_grid import body_of, grid_of
from medcl3d.io.progress import track
from medcl3d.store.store import Store
from medcl3d.viewer.scan_grid import ShownGrid, packed

MOST_CELLS = 200_000  # of the grid of colours of a scan
MOST_POINTS = 8_000  # of a scan, among which neighbours are searched
ALL_CELLS, ALL_MATCHES = 2_000_000, 1_000_000  # on the whole page, so that it stays below about 20 MB
VALUES = 1 << 27  # features of coloured cells in memory at a time: 512 MiB
CONTRAST = (2, 98)  # percentiles of a component with no and with full colour


@dataclass(frozen=True)
class Described:
    """Features of one scan.

    ratio              voxels of the shown grid per coloured cell, along each axis
    points, of_points  voxels ``Int[N, 3]`` among which neighbours are searched; features ``Float32[N, F]``
    cells, of_cells    the same for the coloured cells, which are in the body
    parts              numbers of features of each map
    """

    grid: ShownGrid
    ratio: Triple
    points: np.ndarray
    cells: np.ndarray
    of_points: Tensor
    of_cells: Tensor
    parts: tuple[int, ...]


def describe(
    encoder: DenseEncoder, store: Store, scans: Sequence[int], title: str, arms: int
) -> list[Described]:
    """The features of scans; `arms` share the size of a page."""
    pairs = max(1, len(scans) * (len(scans) - 1))
    points = max(100, min(MOST_POINTS, ALL_MATCHES // (pairs * arms)))
    cells = max(1000, min(MOST_CELLS, ALL_CELLS // (len(scans) * arms)))
    return [
        _describe(encoder, store, scan, points, cells, VALUES // len(scans))
        for scan in track(scans, f"{title}: features")
    ]


def _describe(
    encoder: DenseEncoder, store: Store, scan: int, most_points: int, most_cells: int, most_values: int
) -> Described:
    grid, mask, found = ShownGrid.of(store, scan), body_of(store, scan), encoder.scan(scan)
    ratio = coarser(grid, min(most_cells, most_values // sum(found.parts)))
    step = np.array(grid.step) * np.array(ratio)
    cells = np.argwhere(mask[:: step[0], :: step[1], :: step[2]]) * step
    points = grid_of(mask, store.collection.spacings[scan], most_points)
    return Described(grid, ratio, points, cells, found.at(points), found.at(cells), found.parts)


def coarser(grid: ShownGrid, most: int) -> Triple:
    """Voxels of the shown grid per cell along each axis, about equal in mm, with at most `most` cells."""
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    ratio = np.ones(3, dtype=int)
    while np.prod(-(-np.array(grid.shape) // ratio)) > most:
        ratio[np.argmin(np.where(ratio < grid.shape, ratio * spacing, np.inf))] += 1
    return triple(ratio)


def overlays(described: Sequence[Described], modalities: Sequence[str]) -> dict[str, Any]:
    """Colours, points and matches for the page.

    Features are standardised over the shown scans of a modality, and each map counts equally, as in
    `voxel_matching`.
    """
    scales = {
        name: Scale.of(torch.cat([one.of_points for one in of]), of[0].parts)
        for name in dict.fromkeys(modalities)
        if (of := [one for one, other in zip(described, modalities, strict=True) if other == name])
    }
    of_scan = [scales[name] for name in modalities]
    standard = [scale.apply(one.of_points) for scale, one in zip(of_scan, described, strict=True)]
    axes, share = principal_axes(torch.cat(standard))
    scores = [
        (scale.apply(one.of_cells) @ axes).numpy() for scale, one in zip(of_scan, described, strict=True)
    ]
    low, high = np.percentile(np.concatenate(scores), CONTRAST, axis=0)
    units = [scale.directions(one.of_points) for scale, one in zip(of_scan, described, strict=True)]
    return {
        "variance": round(share, 3),
        "colours": [_colours(one, score, low, high) for one, score in zip(described, scores, strict=True)],
        "points": [packed(np.rint(one.grid.of_whole(one.points)).astype(np.uint16)) for one in described],
        "matches": [
            [None if a is b else _matches(a, b) for b in units] for a in track(units, "nearest neighbours")
        ],
    }


def principal_axes(features: Tensor, number: int = 3) -> tuple[Tensor, float]:
    """Directions ``[F, number]`` of the largest variance of centred features ``[N, F]``, and their share.

    Fewer features give zeros. The largest entry of a direction is positive, so that signs are defined.
    """
    covariance = features.double().T @ features.double() / len(features)
    values, vectors = torch.linalg.eigh(covariance)
    axes = vectors.flip(1)[:, :number]
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    padded = torch.zeros(len(axes), number)
    padded[:, : axes.shape[1]] = (axes * signs).float()
    return padded, float(values.flip(0)[:number].sum() / values.sum().clamp(min=1e-12))


def _colours(one: Described, scores: np.ndarray, low: np.ndarray, high: np.ndarray) -> dict[str, Any]:
    """Red, green and blue from 1 to 255, 0 outside the body."""
    shape = tuple(-(-n // r) for n, r in zip(one.grid.shape, one.ratio, strict=True))
    rgb = np.zeros((*shape, 3), dtype=np.uint8)
    share = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1)
    rgb[tuple((one.cells // (np.array(one.grid.step) * np.array(one.ratio))).T)] = np.rint(1 + 254 * share)
    return {"shape": list(shape), "ratio": list(one.ratio), **packed(rgb)}


def _matches(queries: Tensor, candidates: Tensor) -> dict[str, Any]:
    """For each point the most similar point of another scan, and the cosine: 0 to 254 for -1 to 1."""
    found, _ = nearest(queries, candidates)
    cosine = np.rint(127 * (1 + np.clip(found.cosine[:, 0], -1, 1)))
    return {"index": packed(found.index[:, 0].astype(np.uint16)), "cosine": packed(cosine.astype(np.uint8))}

"""Views and points of the first samples of a pretraining, on the grids of the shown scans."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from medcl3d.core.geometry import ViewSpec
from medcl3d.pretraining.parts import Pretraining
from medcl3d.sampling.raw_batch import RawBatch
from medcl3d.viewer.scan_grid import ShownGrid

STEPS = 4  # whose samples are read until enough of them are in shown scans
MOST_SAMPLES, MOST_POINTS = 12, 32


@dataclass(frozen=True)
class Sample:
    """One sample of a run.

    number  within the run, from 0
    scans   of its views, as rows of the store
    points  ``Float64[P, 3]`` world mm
    """

    number: int
    views: tuple[ViewSpec, ...]
    scans: tuple[int, ...]
    points: np.ndarray


def samples_of(parts: Pretraining) -> Iterator[Sample]:
    """The samples of the first steps, in the order of training."""
    dataset = parts.dataset()
    for step in range(min(STEPS, len(dataset))):
        yield from _samples(dataset[step], parts.scans.rows)


def _samples(raw: RawBatch, rows: np.ndarray) -> Iterator[Sample]:
    for row, number in enumerate(torch.unique_consecutive(raw.main.keys.sample).tolist()):
        views = tuple(
            group.views[i]
            for group in raw.groups
            for i in (group.keys.sample == number).nonzero().flatten().tolist()
        )
        points = np.zeros((0, 3))
        if raw.points is not None:
            points = raw.points.position_mm[row][raw.points.valid[row]][:MOST_POINTS].numpy()
        yield Sample(number, views, tuple(int(rows[view.scan]) for view in views), points)


def first_scans(parts: Pretraining) -> list[int]:
    """The scans of the first step's samples, as rows of the store."""
    rows = parts.scans.rows
    return [scan for sample in _samples(parts.dataset()[0], rows) for scan in sample.scans]


def drawn_on(parts: Pretraining, scans: Sequence[int]) -> dict[str, Any]:
    """The views and points in shown scans, of the first `MOST_SAMPLES` samples that have some."""
    shown = {scan: number for number, scan in enumerate(scans)}
    grids = [ShownGrid.of(parts.store, scan) for scan in scans]
    chosen = islice((one for one in samples_of(parts) if shown.keys() & set(one.scans)), MOST_SAMPLES)
    views, points, numbers = [], [], []
    for sample in chosen:
        numbers.append(sample.number + 1)
        for place, (view, scan) in enumerate(zip(sample.views, sample.scans, strict=True)):
            if scan in shown:
                ends = grids[shown[scan]].of_whole(np.array([view.box.start, view.box.stop]) - 0.5)
                views.append(
                    {
                        "scan": shown[scan],
                        "sample": len(numbers) - 1,
                        "name": f"{numbers[-1]}{chr(ord('a') + place % 26)}",
                        "role": view.role,
                        "low": ends[0].tolist(),
                        "high": ends[1].tolist(),
                    }
                )
        points += _points(parts, sample, shown, grids, len(numbers) - 1)
    return {"samples": numbers, "views": views, "samplePoints": points}


def _points(
    parts: Pretraining, sample: Sample, shown: dict[int, int], grids: Sequence[ShownGrid], number: int
) -> list[dict[str, Any]]:
    """The points of a sample in shown scans of its frame."""
    found = []
    collection = parts.store.collection
    for scan in dict.fromkeys(scan for scan in sample.scans if scan in shown):
        if len(sample.points) and collection.share_frame(sample.scans[0], scan):
            inverse = np.linalg.inv(grids[shown[scan]].affine)
            at = sample.points @ inverse[:3, :3].T + inverse[:3, 3]
            found.append({"scan": shown[scan], "sample": number, "at": np.round(at, 2).tolist()})
    return found

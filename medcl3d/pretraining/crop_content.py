"""How much of a strategy's crops is padding or background, from the boxes of crops; no voxel is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np

from medcl3d.core.collection import Collection
from medcl3d.core.geometry import ViewSpec
from medcl3d.pretraining.parts import Pretraining

NUM_SAMPLES = 128
MAX_PADDED = 0.25
NEARLY_EMPTY = 0.1
MAX_NEARLY_EMPTY = 0.1


@dataclass(frozen=True)
class CropContent:
    """Shares of the voxels of some crops.

    padded      share outside the scan
    background  share inside the scan, but outside the box around the body
    empty       share of crops of which less than a tenth is inside the box around the body
    num_crops   number of crops
    """

    padded: float
    background: float
    empty: float
    num_crops: int

    def line(self) -> str:
        """The shares as a sentence."""
        return (
            f"crops: {self.padded:.0%} of their voxels are padding, {self.background:.0%} are outside the "
            f"box around the body; {self.empty:.0%} of {self.num_crops} crops are nearly empty"
        )


def content_of_crops(collection: Collection, views: Iterable[ViewSpec]) -> CropContent:
    """The content of the crops of some views."""
    scans, starts, stops = (
        np.array(values)
        for values in zip(*((view.scan, view.box.start, view.box.stop) for view in views), strict=True)
    )
    whole = (stops - starts).prod(1)

    def share(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        common = np.minimum(stops, high) - np.maximum(starts, low)
        return np.asarray(common.clip(min=0).prod(1) / whole)

    in_scan = share(np.zeros_like(starts), collection.shapes[scans])
    in_body = share(collection.body_boxes[scans, 0], collection.body_boxes[scans, 1])
    empty = float((in_body < NEARLY_EMPTY).mean())
    return CropContent(float(1 - in_scan.mean()), float((in_scan - in_body).mean()), empty, len(scans))


def crop_notes(parts: Pretraining) -> list[str]:
    """The content of the first samples' crops, with a warning if much of them is padding or empty."""
    dataset, collection = parts.dataset(), parts.scans.collection
    drawn = (dataset.draw(step, index) for step in range(len(dataset)) for index in range(dataset.per_rank))
    samples = (parts.strategy.sample(collection, *draw) for draw in islice(drawn, NUM_SAMPLES))
    content = content_of_crops(collection, chain.from_iterable(samples))
    notes = [content.line()]
    if content.padded > MAX_PADDED:
        size = parts.config.data.patch_size
        better = fitting_patch(collection.shapes, size, parts.learner.network.minimum_multiple)
        advice = "" if better == size else f"; data.patch_size = {list(better)} fits the scans"
        notes.append(f"warning: {content.padded:.0%} of what the encoder reads is padding{advice}")
    elif content.empty > MAX_NEARLY_EMPTY:
        notes.append(
            f"warning: {content.empty:.0%} of the crops have almost no body; crop the scans when they are "
            "prepared (`crop=body`), or use larger patches"
        )
    return notes


def fitting_patch(
    shapes: np.ndarray, at_most: tuple[int, int, int], multiple: tuple[int, int, int]
) -> tuple[int, int, int]:
    """The largest patch within the median scan ``[N, 3]`` whose sizes are multiples, and at least one."""
    typical = np.minimum(np.median(shapes, axis=0), at_most).astype(int)
    d, h, w = (max(m, n // m * m) for n, m in zip(typical.tolist(), multiple, strict=True))
    return d, h, w

"""IoU of all pairs of boxes in one formula, and the drawing of two boxes of one scan box by box."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from torch import Tensor

from medcl3d.core.geometry import Box, triple
from medcl3d.core.keys import Keys
from medcl3d.pairs.boxes import iou, overlap_offset


def iou_of_all_pairs(rows: Keys, cols: Keys) -> Tensor:
    """``Float64[N, M]``: the IoU of all pairs, then 0 where frames or axes differ."""
    to_axes = torch.linalg.inv(rows.axes)
    offset = torch.einsum("nmi,nji->nmj", cols.center_mm - rows.center_mm[:, None], to_axes)
    half_row, half_col = rows.size_mm[:, None] / 2, cols.size_mm / 2
    overlap = torch.minimum(half_row, offset + half_col) - torch.maximum(-half_row, offset - half_col)
    shared = overlap.clamp(min=0).prod(-1)
    union = rows.size_mm.prod(-1)[:, None] + cols.size_mm.prod(-1) - shared
    aligned = (rows.axes[:, None] - cols.axes).abs().amax((-1, -2)) < 1e-3
    return torch.where((rows.frame[:, None] == cols.frame) & aligned, shared / union, 0.0)


def two_boxes(
    size: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    lowest: float,
    highest: float,
    rng: np.random.Generator,
) -> list[Box]:
    """Two boxes whose IoU is nearest to a uniform draw, of all that rounding to voxels allows; or none."""
    origin, target = Box((0, 0, 0), triple(size)), rng.uniform(lowest, highest)
    exact = overlap_offset(size, high - low, target, rng)
    rounded = [np.unique([np.floor(x), np.ceil(x)]) for x in exact]
    offsets = [np.array(o, dtype=np.int64) for o in product(*rounded) if (np.abs(o) <= high - low).all()]
    offsets.sort(key=lambda o: abs(iou(origin, Box(triple(o), origin.size)) - target))
    if (
        not offsets
        or not lowest - 1e-9 <= iou(origin, Box(triple(offsets[0]), origin.size)) <= highest + 1e-9
    ):
        return []
    offset = offsets[0]
    start = rng.integers(low + np.maximum(0, -offset), high - np.maximum(0, offset) + 1)
    return [Box(triple(start), origin.size), Box(triple(start + offset), origin.size)]

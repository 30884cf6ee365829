"""IoU of all pairs of boxes in one formula, also of pairs that cannot be compared."""

from __future__ import annotations

import torch
from torch import Tensor

from medcl3d.core.keys import Keys


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

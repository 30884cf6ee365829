"""Pairs of rows and columns that share a value, listed without comparing all pairs."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64
from torch import Tensor

Pairs = tuple[Int64[np.ndarray, " _"], Int64[np.ndarray, " _"]]
"""Row and column of each pair."""

FEW = 1 / 8
"""Fraction of all pairs up to which those with one value are listed."""


def equal_pairs(rows: Int64[Tensor, " N"], cols: Int64[Tensor, " M"]) -> Pairs | None:
    """The pairs with one value, sorted by row, then column.

    None if all pairs should be compared instead: if many have one value, and on another device than a CPU,
    which would have to wait for their number.
    """
    if rows.device.type != "cpu":
        return None
    wanted, values = rows.numpy(), cols.numpy()
    order = values.argsort(kind="stable")
    ordered = values[order]
    first = ordered.searchsorted(wanted)
    counts = ordered.searchsorted(wanted, "right") - first
    end = counts.cumsum()
    num_pairs = int(end[-1]) if len(end) else 0
    if num_pairs > FEW * len(wanted) * len(values):
        return None
    # Positions in the sorted columns: of each row from the first to the last with its value.
    place = np.arange(num_pairs) + (first - end + counts).repeat(counts)
    return np.arange(len(wanted)).repeat(counts), order[place]

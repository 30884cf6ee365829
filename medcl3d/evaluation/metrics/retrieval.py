"""Measures of retrieval from a gallery sorted by similarity, averaged over all orders of ties.

The result therefore does not depend on the order of a table, and a gallery of equal similarities gives
chance. Source: McSherry and Najork 2008, Computing information retrieval performance measures efficiently in
the presence of tied scores.
"""

from __future__ import annotations

import numpy as np

RECALLS = (1, 5)
TIE = 1e-12
"""Cosines with a smaller difference are tied: rounding depends on the position in a table."""


def measures(similarity: np.ndarray, matches: np.ndarray) -> dict[str, float]:
    """Recall at 1 and 5, reciprocal rank, average precision, and the expectation of each for a random order.

    similarity  ``Float[n]`` of a query to the items of its gallery, larger is nearer
    matches     ``Bool[n]``: whether an item is of the group of the query; at least one is
    """
    order = np.argsort(-similarity, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(-similarity[order]) > TIE]))
    sizes = np.diff([*starts, len(order)])
    hits = np.add.reduceat(matches[order].astype(int), starts)
    before, first = np.cumsum(hits) - hits, int(np.flatnonzero(hits)[0])
    precision = (before + 1) / (starts + 1)
    for tied in np.flatnonzero((sizes > 1) & (hits > 0)):
        precision[tied] = _precision(sizes[tied], hits[tied], starts[tied], before[tied])
    n, m = len(matches), int(matches.sum())
    found = {
        **_of_first_match(int(sizes[first]), int(hits[first]), int(starts[first])),
        "average_precision": float((hits * precision)[hits > 0].sum() / m),
    }
    chance = {**_of_first_match(n, m, 0), "average_precision": float(_precision(n, m, 0, 0))}
    return {
        key: value for name in found for key, value in ((name, found[name]), (f"chance_{name}", chance[name]))
    }


def _of_first_match(size: int, hits: int, start: int) -> dict[str, float]:
    """Measures of the first match: one of `hits` among `size` tied items, after `start` others."""
    # none_in[r]: fraction of all orders without a match among the first r tied items.
    place = np.arange(size)
    none_in = np.concatenate([[1.0], np.cumprod(np.maximum(size - hits - place, 0) / (size - place))])
    found = {f"recall@{k}": float(1 - none_in[min(max(k - start, 0), size)]) for k in RECALLS}
    found["reciprocal_rank"] = float(((none_in[:-1] - none_in[1:]) / (start + place + 1)).sum())
    return found


def _precision(size: int, hits: int, start: int, before: int) -> float:
    """Mean precision at a match: one of `hits` in `size` tied items, after `before` in `start` items."""
    # A match at rank i of the tie has on average (i - 1) (hits - 1) / (size - 1) other matches of the tie
    # before it.
    single = ((before + 1) / (start + 1 + np.arange(size))).sum() / size
    return float(single + (hits - 1) / max(1, size - 1) * (1 - (start + 1) / (before + 1) * single))

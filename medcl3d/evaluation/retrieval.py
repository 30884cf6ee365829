"""What a query finds in a gallery that is ordered by its likeness; what is equally like comes in every order.

Items that tie share their places: each measure is its mean over all orders of theirs, so that no table's order decides, and a
gallery that is all alike measures what chance does. Source: McSherry and Najork 2008, Computing information retrieval
performance measures efficiently in the presence of tied scores.
"""

from __future__ import annotations

import numpy as np

RECALLS = (1, 5)
TIE = 1e-12
"""Cosines that lie no further apart are one: what differs is their rounding, which depends on the place in a table."""


def measures(likeness: np.ndarray, matches: np.ndarray) -> dict[str, float]:
    """Recall at 1 and 5, reciprocal rank of the first match, average precision, and of each what a random order gives on average.

    likeness  ``Float[n]`` of a query to each of its gallery, more is nearer
    matches   ``Bool[n]``: which of them are of its group, some of them
    """
    order = np.argsort(-likeness, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(-likeness[order]) > TIE]))
    sizes = np.diff([*starts, len(order)])
    hits = np.add.reduceat(matches[order].astype(int), starts)
    before, first = np.cumsum(hits) - hits, int(np.flatnonzero(hits)[0])
    precision = (before + 1) / (starts + 1)
    for tied in np.flatnonzero((sizes > 1) & (hits > 0)):
        precision[tied] = _precision(sizes[tied], hits[tied], starts[tied], before[tied])
    n, m = len(matches), int(matches.sum())
    found = {
        **_of_the_first(int(sizes[first]), int(hits[first]), int(starts[first])),
        "average_precision": float((hits * precision)[hits > 0].sum() / m),
    }
    chance = {**_of_the_first(n, m, 0), "average_precision": float(_precision(n, m, 0, 0))}
    return {key: value for name in found for key, value in ((name, found[name]), (f"chance_{name}", chance[name]))}


def _of_the_first(size: int, hits: int, start: int) -> dict[str, float]:
    """What depends on the first match alone: it is one of `hits` among `size` items that tie, after `start` others without any."""
    # Of all orders, none_in[r] have no match among the first r that tie: each further place misses what is left.
    place = np.arange(size)
    none_in = np.concatenate([[1.0], np.cumprod(np.maximum(size - hits - place, 0) / (size - place))])
    found = {f"recall@{k}": float(1 - none_in[min(max(k - start, 0), size)]) for k in RECALLS}
    found["reciprocal_rank"] = float(((none_in[:-1] - none_in[1:]) / (start + place + 1)).sum())
    return found


def _precision(size: int, hits: int, start: int, before: int) -> float:
    """The mean precision at a match among `size` items that tie, `hits` of which match; `before` of the `start` items ahead did."""
    # At place i of the tie, a match has (i - 1) (hits - 1) / (size - 1) others of the tie ahead of it on average.
    alone = ((before + 1) / (start + 1 + np.arange(size))).sum() / size
    return float(alone + (hits - 1) / max(1, size - 1) * (1 - (start + 1) / (before + 1) * alone))

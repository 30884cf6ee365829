"""Placebo: a control that removes only a strategy's signal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int

from medcl3d.core.batch import REGION
from medcl3d.core.body_coordinates import BODY
from medcl3d.core.collection import Collection
from medcl3d.core.errors import ConfigError
from medcl3d.pairs import PairStrategy, traits_of

# Signals that are not columns of the manifest: permuted within a sample (positions and regions of points) or
# within a scan (slices and body coordinates).
POINTS, SLICE = "position_mm", "slice"


def placebo(collection: Collection, strategy: PairStrategy, seed: int) -> Collection:
    """The collection with the strategy's signal columns permuted among scans, once per seed.

    All columns are permuted together, which keeps their joint distribution; among patients instead of scans
    if all are constant within each patient, so that scans of a patient still share them. `slice` permutes the
    slices of each scan. The rest is left to the loader: a sample has the body coordinates of another sample
    of its scans, so that they are distributed as before, and the positions and regions of points are permuted
    within a sample.
    ConfigError if the strategy has no signal column and therefore no placebo.
    """
    signal_columns = traits_of(strategy).signal_columns
    if not signal_columns:
        raise ConfigError(
            "placebo",
            None,
            "true: this pair strategy has no signal column to permute",
            "compare it with `augmented_views` instead",
        )
    names = [name for name in signal_columns if name not in (POINTS, SLICE, BODY, REGION)]
    rng = np.random.default_rng([seed, len(collection)])
    order = rng.permutation(len(collection))
    missing = [name for name in names if name not in collection.columns]
    if missing:
        raise ConfigError(
            "placebo",
            None,
            f"the collection has no column {', '.join(missing)}",
            "add it to the manifest or choose another strategy",
        )
    if names and (patients := _constant_within_patients(collection, names)) is not None:
        first, owner = patients
        order = first[rng.permutation(len(first))][owner]
    shuffled = collection.with_columns({name: collection.columns[name][order] for name in names})
    return replace(shuffled, slice_seed=seed) if SLICE in signal_columns else shuffled


def _constant_within_patients(
    collection: Collection, names: Sequence[str]
) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " n"]] | None:
    """The first scan of each patient and the patient of each scan; None if not to be permuted by patient.

    That is, if a column differs within a patient, is the patient itself, or if no patient has several scans.
    """
    _, first, owner = np.unique(collection.columns["patient"], return_index=True, return_inverse=True)
    if "patient" in names or len(first) == len(owner):
        return None

    def constant(values: np.ndarray) -> bool:
        of_first = values[first][owner]
        return bool(np.all((values == of_first) | ((values != values) & (of_first != of_first))))  # NaN

    return (first, owner) if all(constant(collection.columns[name]) for name in names) else None


def permutes_body(strategy: PairStrategy) -> bool:
    """Whether a placebo gives a sample the body coordinates of another one."""
    return BODY in traits_of(strategy).signal_columns


def permutes_points(strategy: PairStrategy) -> bool:
    """Whether a placebo shuffles the positions in the keys of points."""
    return POINTS in traits_of(strategy).signal_columns


def permutes_regions(strategy: PairStrategy) -> bool:
    """Whether a placebo shuffles the regions of points."""
    return REGION in traits_of(strategy).signal_columns

"""The split of the prepared patients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from medcl3d.preprocessing.options import PrepareOptions
from medcl3d.store.splits import (
    Split,
    make_folds,
    make_split,
    moved_patients,
    read_previous_split,
    with_previous_sides,
)


def draw_options(options: PrepareOptions) -> dict[str, Any]:
    """The options that determine how a split is drawn from the patients."""
    names = ("seed", "test_fraction", "validation_fraction", "folds")
    return {name: getattr(options, name) for name in names}


def split_of(table: pd.DataFrame, options: PrepareOptions, out: Path) -> tuple[Split, list[str]]:
    """The split, and warnings on patients whose side changed. DataError if no valid split exists.

    Patients keep their side in the split.json of `out` if the options that draw it are unchanged and the
    manifest has no column `split`.
    """
    seed, fraction = options.seed, options.validation_fraction
    if options.folds is not None:
        split = make_folds(table, folds=options.folds, seed=seed, validation_fraction=fraction)
    else:
        test_fraction = options.test_fraction
        split = make_split(table, test_fraction=test_fraction, seed=seed, validation_fraction=fraction)
    earlier = read_previous_split(out / "split.json")
    if earlier is None:
        return split, []
    before, drawn = earlier
    if drawn == draw_options(options) and not (table["split"] != "").any():
        split = with_previous_sides(split, before)
    moved = moved_patients(before, split)
    if not moved:
        return split, []
    named = ", ".join(f"{patient} from {old} to {new}" for patient, old, new in moved[:5])
    named += ", ..." if len(moved) > 5 else ""
    warning = f"warning: {len(moved)} patients are on another side of the split than before ({named})"
    return split, [f"{warning}; repeat pretraining that used them"]

"""Metadata similarity: kernels on columns of the manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int
from pydantic import Field
from torch import Tensor

from medcl3d.config.field_types import Positive
from medcl3d.config.suggestions import require_one_of
from medcl3d.core.collection import Collection
from medcl3d.core.errors import DataError
from medcl3d.core.keys import Keys
from medcl3d.pairs.anchors import Anchors

# A number is the bandwidth of an RBF kernel, in the column's unit; `equal` compares categories.
Kernels = Annotated[dict[str, Positive | Literal["equal"]], Field(min_length=1)]
Combine = Literal["product", "mean"]
# Treatment of a scan with a missing column.
OnMissing = Literal["ignore", "own_group", "drop", "error"]


def similarity_of(
    rows: Keys, cols: Keys, kernels: Mapping[str, float | str], combine: Combine, on_missing: OnMissing
) -> Float64[Tensor, "N M"]:
    """``Float64[N, M]`` in [0, 1]: the combined kernels of all columns; 0 if too few are known for both."""
    return _combined(rows.column, cols.column, kernels, combine, on_missing)


def similarity_between(
    collection: Collection,
    scans: Int[np.ndarray, " N"],
    others: Int[np.ndarray, " M"],
    kernels: Mapping[str, float | str],
    combine: Combine,
    on_missing: OnMissing,
) -> Float64[np.ndarray, "N M"]:
    """``Float64[N, M]``: metadata similarity of some scans of a collection to others."""

    def of(rows: np.ndarray) -> Callable[[str], Tensor]:
        return lambda name: torch.from_numpy(collection.column(name, rows))

    return _combined(of(scans), of(others), kernels, combine, on_missing).numpy()


def _combined(
    rows: Callable[[str], Tensor],
    cols: Callable[[str], Tensor],
    kernels: Mapping[str, float | str],
    combine: Combine,
    on_missing: OnMissing,
) -> Float64[Tensor, "N M"]:
    """Combine the kernels of all columns.

    With `ignore`, a column that is missing for either scan drops out of the product or the mean, whose
    weights are renormalised; otherwise all columns are required.
    """
    require_one_of("combine", combine, Combine)
    require_one_of("on_missing", on_missing, OnMissing)
    values, known = [], []
    for name, kernel in kernels.items():
        first, second = rows(name)[:, None], cols(name)
        difference = first - second
        kernel_value = _equal(difference) if isinstance(kernel, str) else _rbf(difference, kernel)
        known.append(~torch.isnan(difference))
        values.append(torch.where(known[-1], kernel_value, 1.0))
    num_known = torch.stack(known).sum(0)
    mean = (torch.stack(values) * torch.stack(known)).sum(0) / num_known.clamp(min=1)
    combined = torch.stack(values).prod(0) if combine == "product" else mean
    enough = num_known >= (1 if on_missing == "ignore" else len(kernels))
    return torch.where(enough, combined, 0.0)


def _equal(difference: Float64[Tensor, "N M"]) -> Float64[Tensor, "N M"]:
    return (difference == 0).double()


def _rbf(difference: Float64[Tensor, "N M"], bandwidth: float) -> Float64[Tensor, "N M"]:
    return torch.exp(-((difference / bandwidth) ** 2) / 2)


def require_columns(
    strategy: str, collection: Collection, kernels: Mapping[str, float | str]
) -> Bool[np.ndarray, " n"]:
    """``Bool[n]``: scans with a known column. DataError for a missing, empty or constant column."""
    known = np.zeros(len(collection), dtype=bool)
    for name, kernel in kernels.items():
        if name not in collection.columns:
            raise DataError(
                f"{strategy}: the manifest has no column {name!r}; "
                f"choose from {', '.join(collection.columns)}"
            )
        values = collection.column(name)
        present = ~np.isnan(values)
        if len(np.unique(values[present])) < 2:
            constant = f"is the same in all {int(present.sum())} scans that have it"
            what = constant if present.any() else "is empty"
            raise DataError(
                f"{strategy}: the column {name!r} {what}, so it distinguishes no two scans; "
                "remove it, or fill it in"
            )
        if not isinstance(kernel, str) and not is_number(collection, name):
            raise DataError(
                f"{strategy}: the column {name!r} holds text, not numbers, so it has no bandwidth; "
                f"write `{name}: equal`"
            )
        known |= present
    return known


def without_missing(
    strategy: str, collection: Collection, columns: Iterable[str], on_missing: OnMissing, anchors: Anchors
) -> Anchors:
    """Apply `on_missing` to anchors with missing columns, and note it. DataError if it is `error`."""
    missing = {name: np.isnan(collection.column(name)) for name in columns}
    any_missing = np.any([*missing.values()], axis=0)
    if not any_missing.any():
        return anchors
    counts = [f"{name} is missing in {int(scans.sum())}" for name, scans in missing.items() if scans.any()]
    summary = f"{strategy}: {', '.join(counts)} of {len(collection)} scans"
    if on_missing == "error":
        first = ", ".join(collection.table["scan"][any_missing].astype(str)[:3])
        raise DataError(
            f"{summary} (first: {first}), and on_missing is error; "
            "fill it in, leave those scans out, or choose another on_missing"
        )
    if on_missing == "drop":
        dropped = any_missing[anchors.ids]
        left_out = anchors.left_out + Counter({f"its {' or '.join(missing)} is missing": int(dropped.sum())})
        remedy = "fill the columns in, choose others, or set on_missing to another value"
        return Anchors(anchors.ids[~dropped], left_out, anchors.notes).require(strategy, remedy)
    if not any_missing[anchors.ids].any():
        return anchors
    effect = {
        "ignore": "a pair is compared by its other columns",
        "own_group": "each of them attracts within its sample only",
    }[on_missing]
    note = f"{summary}; {effect} (on_missing: {on_missing})"
    return Anchors(anchors.ids, anchors.left_out, (*anchors.notes, note))


def is_number(collection: Collection, name: str) -> bool:
    """Whether a column of the manifest holds numbers, not categories."""
    if name not in collection.table:
        return name in collection.columns
    column = collection.table[name].dropna()
    try:
        column.astype(float)
    except ValueError:
        return False
    return True

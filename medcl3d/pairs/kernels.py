"""How alike two scans are by their metadata."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from medcl3d.complaints import require_one_of
from medcl3d.data.collection import Collection
from medcl3d.errors import DataError
from medcl3d.pairs.anchors import Anchors
from medcl3d.registry import Positive
from medcl3d.types import Keys

# A number is the bandwidth of an RBF kernel, in the column's unit; `equal` compares categories.
Kernels = Annotated[dict[str, Positive | Literal["equal"]], Field(min_length=1)]
Combine = Literal["product", "mean"]
# What becomes of a scan that lacks a column.
OnMissing = Literal["ignore", "own_group", "drop", "error"]


def similarity_of(rows: Keys, cols: Keys, kernels: Mapping[str, float | str], combine: Combine, on_missing: OnMissing) -> Tensor:
    """``Float64[N, M]`` in [0, 1]: the kernels of all columns, combined; 0 where too little is known of both."""
    return _combined(rows.column, cols.column, kernels, combine, on_missing)


def similarity_between(
    collection: Collection,
    scans: np.ndarray,
    others: np.ndarray,
    kernels: Mapping[str, float | str],
    combine: Combine,
    on_missing: OnMissing,
) -> np.ndarray:
    """``Float64[N, M]``: how alike some scans of a collection are to others."""

    def of(rows: np.ndarray) -> Callable[[str], Tensor]:
        return lambda name: torch.from_numpy(collection.column(name, rows))

    return _combined(of(scans), of(others), kernels, combine, on_missing).numpy()


def _combined(
    rows: Callable[[str], Tensor],
    cols: Callable[[str], Tensor],
    kernels: Mapping[str, float | str],
    combine: Combine,
    on_missing: OnMissing,
) -> Tensor:
    """What is missing of either drops out, of a product and of a mean, whose weights renormalise; unless all have to be known."""
    require_one_of("combine", combine, Combine)
    require_one_of("on_missing", on_missing, OnMissing)
    values, known = [], []
    for name, kernel in kernels.items():
        first, second = rows(name)[:, None], cols(name)
        difference = first - second
        alike = (difference == 0).double() if isinstance(kernel, str) else torch.exp(-((difference / kernel) ** 2) / 2)
        known.append(~torch.isnan(difference))
        values.append(torch.where(known[-1], alike, 1.0))
    number = torch.stack(known).sum(0)
    mean = (torch.stack(values) * torch.stack(known)).sum(0) / number.clamp(min=1)
    found = torch.stack(values).prod(0) if combine == "product" else mean
    enough = number >= (1 if on_missing == "ignore" else len(kernels))
    return torch.where(enough, found, 0.0)


def require_columns(strategy: str, collection: Collection, kernels: Mapping[str, float | str]) -> np.ndarray:
    """``Bool[n]``: scans of which some column is known. DataError for a column that is missing, empty or the same everywhere."""
    known = np.zeros(len(collection), dtype=bool)
    for name, kernel in kernels.items():
        if name not in collection.columns:
            raise DataError(f"{strategy}: the manifest has no column {name!r}; there are {', '.join(collection.columns)}")
        values = collection.column(name)
        there = ~np.isnan(values)
        if len(np.unique(values[there])) < 2:
            what = "is empty" if not there.any() else f"is the same in all {int(there.sum())} scans that have it"
            raise DataError(f"{strategy}: the column {name!r} {what}, so that it tells no two scans apart; drop it, or fill it in")
        if not isinstance(kernel, str) and not is_number(collection, name):
            raise DataError(f"{strategy}: the column {name!r} holds no numbers, so it has no bandwidth; write `{name}: equal`")
        known |= there
    return known


def without_missing(strategy: str, collection: Collection, columns: Iterable[str], on_missing: OnMissing, anchors: Anchors) -> Anchors:
    """The anchors that are left where scans lack a column, with what becomes of those scans. DataError where it may not be."""
    lack = {name: np.isnan(collection.column(name)) for name in columns}
    any_lack = np.any([*lack.values()], axis=0)
    if not any_lack.any():
        return anchors
    counts = ", ".join(f"{name} is missing in {int(where.sum())}" for name, where in lack.items() if where.any())
    told = f"{strategy}: {counts} of {len(collection)} scans"
    if on_missing == "error":
        first = ", ".join(collection.table["scan"][any_lack].astype(str)[:3])
        raise DataError(
            f"{told} (first: {first}), and on_missing is error; fill it in, leave those scans out, or choose another on_missing"
        )
    if on_missing == "drop":
        lost = any_lack[anchors.ids]
        left_out = anchors.left_out + Counter({f"its {' or '.join(lack)} is missing": int(lost.sum())})
        remedy = "fill the columns in, choose others, or set on_missing to another value"
        return Anchors(anchors.ids[~lost], left_out, anchors.notes).require(strategy, remedy)
    if not any_lack[anchors.ids].any():
        return anchors
    become = {"ignore": "what is missing drops out of a pair", "own_group": "each of those attracts within its sample alone"}[on_missing]
    return Anchors(anchors.ids, anchors.left_out, (*anchors.notes, f"{told}; {become} (on_missing: {on_missing})"))


def is_number(collection: Collection, name: str) -> bool:
    """Whether a column of the manifest holds numbers, and not categories."""
    if name not in collection.table:
        return name in collection.columns
    column = collection.table[name].dropna()
    try:
        column.astype(float)
    except ValueError:
        return False
    return True

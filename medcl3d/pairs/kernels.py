"""How alike two scans are by their metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from medcl3d.data.manifest import Collection
from medcl3d.errors import DataError
from medcl3d.registry import Positive
from medcl3d.types import Keys

# A number is the bandwidth of an RBF kernel, in the column's unit; `equal` compares categories.
Kernels = Annotated[dict[str, Positive | Literal["equal"]], Field(min_length=1)]
Combine = Literal["product", "mean"]


def similarity_of(rows: Keys, cols: Keys, kernels: Mapping[str, float | str], combine: Combine) -> Tensor:
    """``Float64[N, M]`` in [0, 1]: the kernels of all columns, combined; 0 where no column is known of both."""
    return _combined(rows.column, cols.column, kernels, combine)


def similarity_between(
    collection: Collection, scans: np.ndarray, others: np.ndarray, kernels: Mapping[str, float | str], combine: Combine
) -> np.ndarray:
    """``Float64[N, M]``: how alike some scans of a collection are to others."""

    def of(rows: np.ndarray) -> Callable[[str], Tensor]:
        return lambda name: torch.from_numpy(collection.column(name, rows))

    return _combined(of(scans), of(others), kernels, combine).numpy()


def _combined(rows: Callable[[str], Tensor], cols: Callable[[str], Tensor], kernels: Mapping[str, float | str], combine: Combine) -> Tensor:
    """What is missing of either drops out: of a mean, whose weights renormalise, and of a product."""
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
    return torch.where(number > 0, found, 0.0)


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

"""Cells: combinations of the varied fields of a comparison, and their names."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

from medcl3d.comparison.plan.config import CompareConfig

Cell = tuple[tuple[str, Any], ...]
"""One combination of the varied fields: dotted key and value, in the order of the configuration."""

FOLD = "data.fold"


def dotted(fields: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested fields as dotted keys: ``{train: {steps: 9}}`` is ``{train.steps: 9}``.

    A choice, ``{simclr: {temperature: 0.1}}``, is one value: it replaces the previous choice.
    """
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        path = f"{above}.{key}" if above else key
        chosen = (
            isinstance(value, Mapping) and len(value) == 1 and isinstance(next(iter(value.values())), Mapping)
        )
        if isinstance(value, Mapping) and value and not chosen:
            flat |= dotted(value, path)
        else:
            flat[path] = value
    return flat


def slug(name: str) -> str:
    """A name as a folder name."""
    return re.sub(r"[^A-Za-z0-9.=-]+", "_", name).strip("_.") or "_"


def cells(config: CompareConfig) -> list[Cell]:
    """Every combination of the varied fields; one empty cell if nothing varies."""
    vary = dotted(config.vary)
    return [tuple(zip(vary, values, strict=True)) for values in itertools.product(*vary.values())]


def cell_words(cell: Cell) -> str:
    """A cell as a heading."""
    return ", ".join(f"{key} {value}" for key, value in cell) or "all"


def endpoint_cells(config: CompareConfig) -> list[Cell]:
    """The cells that the primary endpoint averages over."""
    wanted = dotted(config.endpoint).items()
    return [cell for cell in cells(config) if all(dict(cell)[key] == value for key, value in wanted)]

"""Configurations as plain values, and differences between two of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pydantic_core import PydanticSerializationError, to_jsonable_python

from medcl3d.config.field_types import Choice


def plain(value: Any) -> Any:
    """A configuration as dicts, lists, numbers and text, as in `config.yaml` of a run."""
    if isinstance(value, Choice):
        return {value.name: plain(dict(value.fields))}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    return to_jsonable_python(value, fallback=_of_array)


def _of_array(value: Any) -> Any:
    """Numbers of NumPy and torch as Python numbers. PydanticSerializationError for any other object."""
    if not hasattr(value, "tolist"):
        raise PydanticSerializationError(f"a {type(value).__name__} is not a plain value")
    return value.tolist()


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Differences of two plain configurations, one line per field."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(k for k in new if k not in old)]
        return [
            line
            for k in keys
            for line in differences(old.get(k), new.get(k), f"{where}.{k}" if where else str(k))
        ]
    return [] if old == new else [f"{where}: {old!r} -> {new!r}"]

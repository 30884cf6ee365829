"""Configurations as plain values, and differences between two of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
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


@dataclasses.dataclass(frozen=True)
class Difference:
    """One field in which two configurations differ; as text: ``field: old -> new``."""

    where: tuple[str, ...]
    old: Any
    new: Any

    @property
    def field(self) -> str:
        """The field as a dotted path."""
        return ".".join(self.where)

    def within(self, fields: Iterable[str]) -> bool:
        """Whether the field is one of some dotted paths, or below one."""
        return any(self.field == name or self.field.startswith(f"{name}.") for name in fields)

    def __str__(self) -> str:
        return f"{self.field}: {self.old!r} -> {self.new!r}"


def differences(old: Any, new: Any, where: tuple[str, ...] = ()) -> list[Difference]:
    """The fields in which two plain configurations differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(k for k in new if k not in old)]
        return [found for k in keys for found in differences(old.get(k), new.get(k), (*where, str(k)))]
    return [] if old == new else [Difference(where, old, new)]


def listed(found: Sequence[Difference], most: int | None = None) -> str:
    """Differences as text, the first `most` of them."""
    more = most is not None and len(found) > most
    return "; ".join([*map(str, found[:most]), *(["..."] if more else [])])

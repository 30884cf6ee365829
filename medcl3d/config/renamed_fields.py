"""Former names of fields, which are accepted for one release with a FutureWarning."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict

from medcl3d.config.field_types import STRICT
from medcl3d.core.errors import ConfigError

RENAMED = "x-renamed"
"""In a JSON Schema: former name of a field -> present name."""


def strict(renamed: Mapping[str, str]) -> ConfigDict:
    """`STRICT` for a configuration with renamed fields: former name -> present name."""
    return {**STRICT, "json_schema_extra": {RENAMED: dict(renamed)}}


def with_present_names(given: Mapping[str, Any], renamed: Mapping[str, str], place: str) -> dict[str, Any]:
    """Fields under their present names; `place` is the beginning of messages.

    FutureWarning for each former name; ConfigError if a field has both names.
    """
    for former, present in renamed.items():
        if former in given:
            if present in given:
                problem = f"former name of {present}, which is given too"
                raise ConfigError(former, None, problem, f"remove {former}", place=place.removesuffix(": "))
            warn(place, former, present)
    return {renamed.get(key, key): value for key, value in given.items()}


def refuse_both(both: bool, place: str, former: str, present: str) -> None:
    """ConfigError if a field is given under both names."""
    if both:
        raise ConfigError(f"{place}{former}: former name of {present}, which is given too; remove {former}")


def warn(place: str, former: str, present: str) -> None:
    """FutureWarning that a field was given under its former name."""
    warnings.warn(
        f"{place}{former}: this field is now called {present}; rename it, since the next release does not "
        "read the former name",
        FutureWarning,
        stacklevel=3,
    )

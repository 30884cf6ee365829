"""Types of configuration fields that several components share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import ConfigDict, Field

STRICT = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)

Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # the range of scikit-learn; torch and NumPy accept more
Size = tuple[PositiveInt, PositiveInt, PositiveInt]
CHOICE_OF = "x-choice-of"  # in a JSON Schema: the package whose components are allowed here


@dataclass(frozen=True)
class Choice:
    """The configuration of one component: its name and its fields, defaults filled in."""

    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def as_plain(self) -> dict[str, Any]:
        """The same as in a YAML file."""
        return {self.name: dict(self.fields)}

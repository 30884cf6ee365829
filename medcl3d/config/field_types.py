"""Types of configuration fields that several components share."""

from __future__ import annotations

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)

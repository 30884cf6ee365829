"""The check of types and shapes in annotations that tests apply to packages with shapes in their signatures."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

CHECKED = tuple(
    f"medcl3d.{package}"
    for package in ("core", "pairs", "losses", "objectives", "encoders", "views", "sampling")
)

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is accepted as a float

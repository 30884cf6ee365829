"""The check of shapes in annotations, which tests apply to the packages in `CHECKED`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray

PACKAGES = ("core", "pairs", "losses", "objectives", "encoders", "views", "sampling")
CHECKED = tuple(f"medcl3d.{package}" for package in PACKAGES)


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check the arguments and results of a function that are arrays, or contain arrays.

    mypy checks all other annotations, and tests pass substitutes for such arguments.
    """
    hints = function.__annotations__
    function.__annotations__ = {name: hint if _has_array(hint) else Any for name, hint in hints.items()}
    return beartype(function)


def _has_array(hint: Any) -> bool:
    is_array = isinstance(hint, type) and issubclass(hint, AbstractArray)
    return is_array or any(_has_array(part) for part in get_args(hint))

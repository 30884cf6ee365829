"""Registered classes and functions as attributes of their package, imported on first use."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from medcl3d.config.registry import Registry


def registered_attribute(registry: Registry, name: str) -> Callable[..., Any]:
    """The registered class or function of this name, as in ``medcl3d.pairs.OverlappingCrops``.

    AttributeError if none has this name. Submodules are left to the import system.
    """
    package = importlib.import_module(registry.package)
    if not name.startswith("_") and name not in {
        module.name for module in pkgutil.iter_modules(package.__path__)
    }:
        for constructor in map(registry.get, registry.names()):
            if constructor.__name__ == name:
                return constructor
    raise AttributeError(f"module {registry.package!r} has no attribute {name!r}")


def registered_attributes(registry: Registry) -> list[str]:
    """Names of all registered classes and functions, sorted."""
    return sorted(registry.get(name).__name__ for name in registry.names())

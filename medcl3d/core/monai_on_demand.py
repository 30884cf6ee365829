"""Import only those modules of MONAI that are used.

``import monai`` imports all of its modules, each twice, and the libraries that they use: most of the time
that a short command takes. With `import_on_demand`, a module of MONAI is imported when it is first used.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def import_on_demand() -> None:
    """Let a later ``import monai`` in this process import modules only when they are used.

    For commands: in a program of a user, MONAI is imported as usual.
    """
    if "monai" not in sys.modules and not any(isinstance(one, _Finder) for one in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        found = PathFinder.find_spec(name) if name == "monai" else None
        if found is not None and found.loader is not None:
            found.loader = _Loader(found.loader)
        return found


class _Loader(Loader):
    def __init__(self, loader: Loader):
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # monai/__init__.py imports what walk_packages lists.
        walk_packages = pkgutil.walk_packages
        pkgutil.walk_packages = lambda *_, **__: iter(())
        try:
            self.loader.exec_module(module)
        finally:
            pkgutil.walk_packages = walk_packages
        vars(importlib.import_module("monai.utils.module"))["walk_packages"] = walk_packages
        importlib.import_module("monai.apps")  # first, since it and monai.networks import each other
        module.__getattr__ = _submodule  # type: ignore[method-assign]


def _submodule(name: str) -> Any:
    """``monai.NAME``."""
    try:
        return importlib.import_module(f"monai.{name}")
    except ModuleNotFoundError as error:
        raise AttributeError(f"module 'monai' has no attribute {name!r}") from error

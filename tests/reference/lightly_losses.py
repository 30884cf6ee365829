"""Single loss modules of lightly, without its packages' `__init__`, which import torchvision."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PACKAGES = ("lightly", "lightly.loss", "lightly.utils", "lightly.models", "lightly.models.modules")


def lightly_loss(module: str, name: str) -> Any:
    """The class or function `name` of lightly/loss/`module`.py; the test is skipped if lightly is not
    installed.
    """
    if "lightly" not in sys.modules:
        spec = find_spec("lightly")
        if spec is None or not spec.submodule_search_locations:
            pytest.skip("lightly is not installed: pip install --no-deps lightly")
        root = Path(next(iter(spec.submodule_search_locations))).parent
        for package in PACKAGES:
            empty = ModuleType(package)
            empty.__path__ = [str(root / package.replace(".", "/"))]
            sys.modules[package] = empty
    return getattr(importlib.import_module(f"lightly.loss.{module}"), name)

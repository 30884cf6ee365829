"""Reading of the YAML files that runs write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's if PyYAML was built with it: a report of a comparison reads hundreds of files."""


def read_yaml(file: Path) -> Any:
    """The content of a file. OSError, ValueError or yaml.YAMLError if it cannot be read."""
    loader = LOADER(file.read_text(encoding="utf-8"))
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()

"""Body coordinates by registration, as `prepare` stores them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medcl3d.core.errors import DataError

REGISTERED = "registered.json"


def read_registered(root: Path) -> dict[str, dict[str, Any]]:
    """Scan -> its entry in registered.json; {} without the file. DataError if the file is damaged."""
    path = root / REGISTERED
    try:
        found: dict[str, dict[str, Any]] = json.loads(path.read_text())["scans"]
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        raise DataError(
            path, "is damaged", "delete it and run the same `medcl3d prepare` command again"
        ) from None
    return found

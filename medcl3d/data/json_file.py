"""JSON from somebody's disk: what a lenient parser lets pass in silence is refused, with the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medcl3d.errors import DataError


def read_json(path: Path, needed: str, *, numbers_as_text: bool = False) -> Any:
    """The content of a JSON file.

    needed           what the file should be, for the message where there is none
    numbers_as_text  numbers as they are written, since an id like 1e3 is no 1000.0

    Raises DataError: absent, truncated, a key twice, NaN.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"the keys {twice} occur twice; keep one of each")
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON; write null, or leave the key out")

    as_written: dict[str, Any] = {"parse_int": str, "parse_float": str} if numbers_as_text else {}
    try:
        text = path.read_text(encoding="utf-8-sig")
        return json.loads(text, object_pairs_hook=once, parse_constant=refuse, **as_written)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; {needed}") from None
    except json.JSONDecodeError as error:
        end = "; is the file cut short?" if error.pos >= len(text.rstrip()) else "; correct it there"
        raise DataError(f"{path}:{error.lineno}: cannot be read as JSON: {error.msg}{end}") from None
    except RecursionError:
        raise DataError(f"{path}: cannot be read as JSON: it is nested without end; {needed}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from None


def read_label_names(path: Path) -> dict[int, str]:
    """Class -> name out of a `labels.json` as ``{"0": "background", "1": "liver"}``; {} where there is no such file."""
    if not path.exists():
        return {}
    needed = 'needed is an object like {"0": "background", "1": "liver"}'
    content = read_json(path, needed)
    try:
        return {int(value): str(name) for value, name in content.items()}
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path}: {error}; {needed}") from None

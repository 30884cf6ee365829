"""Untrusted JSON files: errors that a lenient parser ignores are reported with the line."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medcl3d.core.errors import DataError
from medcl3d.io.regular_file import read_regular

CLASSES = 'needed is an object like {"1": "liver", "2": "spleen"}'


def read_json(path: Path, needed: str, *, numbers_as_text: bool = False) -> Any:
    """The content of a JSON file.

    needed           the expected content, for the message if the file is missing
    numbers_as_text  keep numbers as text, since an id like 1e3 is not 1000.0

    Raises DataError: missing, not a file, truncated, duplicate keys, NaN, lone surrogates.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        counts = Counter(key for key, _ in pairs)
        if len(counts) < len(pairs):
            twice = sorted(key for key, count in counts.items() if count > 1)
            raise ValueError(f"the keys {twice} occur twice; keep one of each")
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON; write null, or leave the key out")

    as_written: dict[str, Any] = {"parse_int": str, "parse_float": str} if numbers_as_text else {}
    raw = read_regular(path, needed)
    try:
        text = raw.decode("utf-8-sig")
        content = json.loads(text, object_pairs_hook=once, parse_constant=refuse, **as_written)
        if re.search(r"\\u[dD][89a-fA-F]", text):
            _refuse_lone_surrogates(content)
        return content
    except json.JSONDecodeError as error:
        end = "; is the file cut short?" if error.pos >= len(text.rstrip()) else "; correct it there"
        raise DataError(f"{path}:{error.lineno}", f"cannot be read as JSON: {error.msg}{end}") from None
    except UnicodeDecodeError as error:
        line = 1 + raw.count(b"\n", 0, error.start)
        problem = "cannot be read as JSON: the text is not UTF-8"
        raise DataError(f"{path}:{line}", problem, "save it as UTF-8") from None
    except RecursionError:
        raise DataError(path, "cannot be read as JSON: it is nested too deeply", needed) from None
    except ValueError as error:
        raise DataError(path, f"cannot be read as JSON: {error}") from None


def read_record(path: Path) -> dict[str, Any]:
    """The object of a JSON file that a run wrote; {} if it is absent. DataError if it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(path, f"is damaged ({error})", "delete its folder to run it again") from None
    if not isinstance(found, dict):
        raise DataError(path, "is damaged (not a JSON object)", "delete its folder to run it again")
    return found


def _refuse_lone_surrogates(content: Any) -> None:
    """Refuse text that cannot be written to a file, before a report fails to write it."""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        surrogate = f"\\u{ord(error.object[error.start]):04x}"
        raise ValueError(f"{surrogate} is half a character (a lone surrogate); write the whole one") from None


def read_label_names(path: Path) -> dict[int, str]:
    """Class -> name from a `labels.json` like ``{"1": "liver"}``; {} if the file does not exist."""
    return label_names(path, read_json(path, CLASSES)) if os.path.lexists(path) else {}


def label_names(path: Path, content: Any) -> dict[int, str]:
    """Class -> name from the content of a JSON file; 0 is background unless the file names it. DataError."""
    if not isinstance(content, dict):
        raise DataError(path, "the classes are not an object", CLASSES)
    names: dict[int, str] = {}
    for value, name in content.items():
        if not re.fullmatch(r"\d{1,9}", value) or isinstance(name, (dict, list)):
            raise DataError(path, f"{value!r}: {name!r}: is not a class and its name", CLASSES)
        names[int(value)] = str(name)
    return unique_names({0: "background", **names}) if names else {}


def unique_names(names: Mapping[int, str]) -> dict[int, str]:
    """Class -> name. Names of several classes get their number, since measures are listed by name."""
    number = Counter(names.values())
    return {
        value: name if number[name] == 1 or not value else f"{name} {value}" for value, name in names.items()
    }

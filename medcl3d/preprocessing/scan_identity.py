"""Whether a store holds a scan as it is now: content hashes, file states, options."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medcl3d.core.errors import DataError
from medcl3d.io.nifti import content_sha256
from medcl3d.io.regular_file import why_absent
from medcl3d.preprocessing.read_scan import volume_hash
from medcl3d.preprocessing.scan_task import ScanTask
from medcl3d.store.stored_scan import SCHEMA, stored_names

# File -> key of its hash in a description.
CONTENT = {"source": "sha256", "label_source": "label_source_sha256"}


def is_current(stored: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Whether a stored scan was prepared from the same content with the same options."""
    changed = {name: now for name, now in identity.items() if stored.get(name) != now}
    return all(is_same_file(stored, name, now) for name, now in changed.items())


def file_state(path: Path) -> dict[str, Any]:
    """Path, size and time of a file. DataError if it does not exist."""
    try:
        status = path.stat()
    except OSError as error:
        reason = why_absent(path) if isinstance(error, FileNotFoundError) else error.strerror
        raise DataError(path, reason) from None
    return {"path": os.path.abspath(path), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def is_same_file(description: Mapping[str, Any], name: str, now: Any) -> bool:
    """Whether a file that was moved, copied or touched has the same content as the one in a description.

    name  source, or label_source
    now   `file_state` of the file
    """
    before, digest = description.get(name), description.get(CONTENT.get(name, ""))
    if not (before and digest and now):
        return False
    if before["bytes"] != now["bytes"]:
        return False
    volume = description.get("volume") if name == "source" else None
    return bool(volume_hash(content_sha256(Path(now["path"])), volume) == digest)


def identity_of(task: ScanTask) -> dict[str, Any]:
    """Size and time of the files, the options and the container; a stored scan is current if none changed."""
    files = {"source": task.image, "label_source": task.label, "atlas_source": task.atlas}
    found = {name: file_state(path) if path else None for name, path in files.items()}
    how = {"volume": task.volume, "options": task.options(), "store": task.store}
    return {"schema": SCHEMA, "scan": task.scan, **found, **how}


def stored_description(task: ScanTask, store: Path) -> dict[str, Any] | None:
    """The description of a stored scan, or None if its files are missing or incomplete."""
    image, label, description = (store / name for name in stored_names(task.scan, task.store))
    try:
        found = json.loads(description.read_text())
        is_whole = image.stat().st_size == found["stored_bytes"]
        is_whole = is_whole and (task.label is None or label.stat().st_size == found["label_bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return {"store": "npy", **found} if is_whole else None  # older descriptions do not name the container

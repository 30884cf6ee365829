"""All files below a folder, in an order that does not depend on the disk, each folder once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from medcl3d.errors import DataError

VOLUMES = (".nii.gz", ".nii")


def files_under(root: Path) -> Iterator[Path]:
    """Paths relative to `root`, sorted. Links to folders are followed once, so that a loop of them ends; hidden files are passed over.

    Raises DataError where `root` is no folder.
    """
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder")
    seen: set[tuple[int, int]] = set()
    for folder, inner, names in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield (Path(folder) / name).relative_to(root)

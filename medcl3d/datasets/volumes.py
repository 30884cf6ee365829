"""4-D files, as of a time series, as several scans."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pandas as pd

from medcl3d.core.errors import DataError
from medcl3d.datasets.manifest import Manifest
from medcl3d.io.nifti import read_header

VOLUME = "volume_of_file"  # column of the manifest: index along the fourth axis, from 0


def split_volumes(manifest: Manifest) -> Manifest:
    """Split 4-D files into one scan per volume, with patient, session, frame, label and metadata of the file.

    Ids get a suffix, ``scan_v00``, and the column `volume_of_file` has the index of the volume. Only headers
    are read; a file with a damaged header stays one scan, which is refused when it is read. Raises DataError
    if an id exists already.
    """
    rows: list[dict[Any, Any]] = []
    num_files = 0
    for row in manifest.table.to_dict("records"):
        count = 1
        if row["scan"] not in manifest.faults:
            with suppress(DataError):
                count = (*read_header(manifest.locate(row["path"])).shape, 1)[3]
        num_files += count > 1
        digits = len(str(count - 1))
        for n in range(count):
            scan = f"{row['scan']}_v{n:0{digits}}" if count > 1 else row["scan"]
            rows.append({**row, "scan": scan, VOLUME: str(n)})
    if not num_files:
        return manifest
    table = pd.DataFrame(rows)
    repeated = table["scan"][table["scan"].duplicated()]
    if len(repeated):
        problem = f"the scan id {repeated.iloc[0]!r} is used for a volume and for another scan"
        raise DataError(manifest.root, problem, "rename the other scan")
    if VOLUME in manifest.table:
        problem = f"the column {VOLUME} is reserved for volumes of 4-D files"
        raise DataError(manifest.root, problem, "rename yours")
    num_scans = len(table) - len(manifest) + num_files
    note = f"{num_files} files of several volumes became {num_scans} scans, one per volume"
    return replace(manifest, table=table, notes=(*manifest.notes, note))

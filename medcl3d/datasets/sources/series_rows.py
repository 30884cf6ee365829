"""Rows of a table whose path is a folder with a DICOM series, beside rows of NIfTI files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from medcl3d.core.errors import DataError
from medcl3d.core.notes import naming
from medcl3d.core.warning_summary import summarise_warnings
from medcl3d.datasets.dicom.series import PetUnits, Series
from medcl3d.datasets.dicom.tilt import Tilt
from medcl3d.datasets.manifest import Manifest
from medcl3d.datasets.scan_ids import default_ids
from medcl3d.datasets.sources.dicom import dicom, write_if_changed
from medcl3d.io.walk import VOLUMES

SELECT = ("series", "part")  # columns that choose one of several series in a folder


@dataclass(frozen=True)
class SeriesRows:
    """A table in which each row of a DICOM series has the path of its NIfTI file.

    table      with the columns scan, modality and frame completed for these rows
    faults     scan -> why its series could not be read
    unwritten  scan -> its series, if nothing was written
    written    paths of the written files, which may be outside the table's folder
    """

    table: pd.DataFrame
    faults: Mapping[str, str] = field(default_factory=dict)
    unwritten: Mapping[str, Series] = field(default_factory=dict)
    written: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def read_series_rows(
    table: pd.DataFrame,
    root: Path,
    raw: Path | None,
    *,
    pet: PetUnits,
    tilt: Tilt,
    outside: bool,
    places: Sequence[str],
) -> SeriesRows:
    """Read the DICOM series of rows whose path is a folder. Other rows are unchanged.

    root     the folder that paths are relative to
    raw      folder for one NIfTI file per series; None: nothing is written
    outside  paths may leave the root
    places   the place of each row, for messages

    Raises DataError, with the place, if a row does not name one series, or leaves the root.
    """
    rows = [row for row, text in enumerate(table["path"]) if _is_folder(root, text)]
    if not rows:
        return SeriesRows(table)
    table = table.reset_index(drop=True).copy()
    for name, values in (("scan", _ids(table)), ("modality", ""), ("frame", "")):
        table[name] = table.get(name, values)
    found = Manifest(table, root, outside=outside)
    read: dict[str, Manifest] = {}
    faults, unwritten, written = dict[str, str](), dict[str, Series](), set[str]()
    warnings: dict[str, list[str]] = {}
    for row in rows:
        cells = {str(name): str(text) for name, text in table.loc[row].items()}
        folder, scan = cells["path"], cells["scan"]
        if folder not in read:
            try:
                read[folder] = dicom(found.locate(folder), None, pet=pet, tilt=tilt, patients="folder")
            except DataError as error:
                raise DataError(f"{places[row]}: {error}") from None
            warnings[folder] = list(read[folder].notes)
        one = _select(read[folder], cells, places[row])
        path, series = f"{folder}/{one['path']}", read[folder].unwritten.get(one["scan"])
        if series is None:
            faults[scan] = read[folder].faults[one["scan"]]
        else:
            table.loc[row, ["modality", "frame"]] = _from_headers(cells, one["modality"], series)
            if raw is None:
                unwritten[scan] = series
            else:
                path = str(_file(raw, folder, one["path"]))
                written.add(path)
                try:
                    warnings[folder] += write_if_changed(Path(path), series)
                except DataError as error:
                    faults[scan] = str(error)
        table.loc[row, "path"] = path
    notes = [naming(f"{len(rows)} rows are DICOM series", table["scan"][rows].tolist())]
    notes += summarise_warnings(warnings.items(), len(read), "folders of DICOM series")
    return SeriesRows(table, faults, unwritten, frozenset(written), tuple(notes))


def _from_headers(cells: Mapping[str, str], modality: str, series: Series) -> list[str]:
    """Modality and frame of a row, from the headers if its cells are empty."""
    uid = series.slices[0].header.text("FrameOfReferenceUID")
    frame = f"{cells.get('patient') or cells['scan']}/{uid}" if uid else ""
    return [cells["modality"] or modality, cells["frame"] or frame]


def _is_folder(root: Path, text: str) -> bool:
    return bool(text) and not text.endswith(VOLUMES) and "\0" not in text and (root / text).is_dir()


def _ids(table: pd.DataFrame) -> list[str]:
    """Default ids, from the paths, and from the series if a folder has several."""
    cells = zip(*(table[name] for name in ("path", *SELECT) if name in table), strict=True)
    several = table["path"].duplicated(keep=False)
    return default_ids(
        ["/".join(texts if more else texts[:1]) for texts, more in zip(cells, several, strict=True)]
    )


def _select(found: Manifest, cells: Mapping[str, str], place: str) -> dict[str, str]:
    """The only series of a folder that fits the cells of a row. DataError if none or several fit."""
    series = list(_series(found))
    given = {name: cells[name] for name in SELECT if cells.get(name)}
    fitting = [one for one in series if all(one.get(name) == text for name, text in given.items())]
    if len(fitting) == 1:
        return fitting[0]
    listed = ", ".join(
        f"series={one['series']}" + (f" part={one['part']}" if one.get("part") else "") for one in series[:5]
    )
    problem = f"the folder {cells['path']} has {len(series)} DICOM series, and {len(fitting)} fit this row"
    raise DataError(place, problem, f"choose one in the columns series and part: {listed}")


def _series(found: Manifest) -> Iterator[dict[str, str]]:
    for row in found.table.to_dict("records"):
        yield {str(name): str(text) for name, text in row.items()}


def _file(raw: Path, folder: str, name: str) -> Path:
    """The NIfTI file of a series. The hash keeps series of two folders apart that have no UID."""
    mark = hashlib.sha256(folder.encode(errors="surrogateescape")).hexdigest()[:8]
    return raw.resolve() / mark / name

"""The manifest (one row a scan) and the collection (the manifest with the geometry of what is stored)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from medcl3d.errors import DataError
from medcl3d.pairs.body_coordinates import BodyCoordinates, middle_of_body
from medcl3d.types import Keys, Triple, ViewSpec

# Columns with a meaning of their own; every other column of a manifest is metadata.
ID_COLUMNS = ("scan", "patient", "session", "modality", "frame", "class")
KNOWN_COLUMNS = (*ID_COLUMNS, "session_days", "path", "label", "atlas", "split")
PATH_COLUMNS = ("path", "label", "atlas")
CONSTANT_COLUMNS = ("sex",)  # of a patient

NO_PATIENTS = (
    "there are no patient ids, so every scan counts as a patient of its own; two scans of one person may then "
    "stand on both sides of the split (a column `patient` in a csv manifest prevents that)"
)
MISSING = ("", "n/a")  # BIDS writes n/a; NA may be the name of a site


@dataclass(frozen=True)
class Manifest:
    """Which files there are, and of whom: one row a scan.

    table        every id as text; `path`, `label` and `atlas` relative to `root` ("" where there is none)
    root         the folder that paths are resolved against
    label_names  class -> name, empty where none were declared
    outside      paths may leave the root
    notes        what a user has to know of it
    faults       scan -> why its source could not make a file of it
    """

    table: pd.DataFrame
    root: Path
    label_names: dict[int, str] = field(default_factory=dict)
    outside: bool = False
    notes: tuple[str, ...] = ()
    faults: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.table)

    @staticmethod
    def of(table: pd.DataFrame, root: Path, label_names: Mapping[int, str] | None = None, *, outside: bool = False) -> Manifest:
        """Fill the defaults in and refuse what is ambiguous. Raises DataError naming the rows."""
        table = table.astype(object).where(table.notna(), "").astype(str).apply(lambda column: column.str.strip())
        if "path" not in table:
            raise DataError(f"{root}: the manifest has no column 'path'; it has {list(table.columns)}")
        notes: list[str] = []
        if "scan" not in table:
            table["scan"] = table["path"].map(_scan_id)
        if "patient" not in table:
            table["patient"] = table["scan"]
            notes.append(NO_PATIENTS)
        for name in ("scan", "patient", "path"):
            empty = np.flatnonzero(table[name] == "")
            if len(empty):
                raise DataError(f"{root}: column {name!r} is empty in row {_line(empty[0])} of the manifest; every scan needs one")
        if not len(table):
            raise DataError(f"{root}: the manifest lists no scan")
        for name, default in (("session", "1"), ("modality", "unknown"), ("label", ""), ("split", "")):
            table[name] = table.get(name, default)
        table["frame"] = table["frame"].where(table["frame"] != "", table["scan"]) if "frame" in table else table["scan"]
        _refuse_ambiguous(table, root)
        first = [c for c in KNOWN_COLUMNS if c in table]
        table = table[first + [c for c in table if c not in first]].reset_index(drop=True)
        return Manifest(table, Path(root), dict(label_names or {}), outside, tuple(notes))

    def locate(self, text: str) -> Path:
        """The file that a path of the manifest means. DataError where it leaves the root and may not."""
        path = Path(text)
        full = self.root / path
        if self.outside:
            return full
        inside = f"{self.root}: path {text!r} of the manifest"
        if path.is_absolute() or ".." in path.parts:
            raise DataError(f"{inside} leaves the root; move the file there, or set allow_outside")
        try:
            if not full.is_symlink() and self._lies_inside(full.parent):
                return full
            target = full.resolve()
        except (OSError, RuntimeError):
            raise DataError(f"{inside} is a loop of links") from None
        if not target.is_relative_to(self._target):
            raise DataError(f"{inside} is a link out of the root, to {target}; copy the file, or set allow_outside")
        return full

    @cached_property
    def _target(self) -> Path:
        return self.root.resolve()

    @cached_property
    def _insiders(self) -> dict[Path, bool]:
        return {}

    def _lies_inside(self, folder: Path) -> bool:
        """Whether a folder's links end under the root: asked once a folder, since following every part of every path takes longest."""
        if folder not in self._insiders:
            self._insiders[folder] = folder.resolve().is_relative_to(self._target)
        return self._insiders[folder]

    def missing(self) -> list[str]:
        """Paths of images, labels and affines that are not there."""
        table = self.table[~self.table["scan"].isin(list(self.faults))]
        paths = pd.concat([table[name] for name in PATH_COLUMNS if name in table])
        return [p for p in paths[paths != ""].unique() if not self.locate(p).exists()]

    def say_missing(self, missing: Sequence[str]) -> str:
        """One line: how many files are missing, the first ten, and where they were looked for."""
        return f"{len(missing)} files of the manifest are missing under {self.root.resolve()}: {', '.join(missing[:10])}"


def read_table(path: Path) -> pd.DataFrame:
    """A CSV or TSV as text, ``001`` and ``NA`` kept. Raises DataError: encoding, ragged rows, duplicate columns."""
    names, rows = read_rows(path)
    return pd.DataFrame(rows, columns=names, dtype=str)


def read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """The column names of a table and its rows, where a data frame for each of many small tables would cost more than reading them."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        row = raw[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{row}: the text is not UTF-8 (latin-1?); save the table as UTF-8") from None
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(cell.strip() for cell in row)]
    if not rows:
        raise DataError(f"{path}: the table is empty")
    names = [name.strip() for name in rows[0]]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise DataError(f"{path}:1: columns {twice} occur twice")
    for line, cells in enumerate(rows[1:], start=2):
        if len(cells) != len(names):
            raise DataError(f"{path}:{line}: {len(cells)} cells under {len(names)} column names")
    return names, rows[1:]


def _scan_id(path: str) -> str:
    """``a/b/scan.nii.gz`` -> ``a_b_scan``: what a path alone can tell, and no two paths tell the same."""
    stem = re.sub(r"\.(nii|nii\.gz|nrrd|mha)$", "", path, flags=re.IGNORECASE)
    return re.sub(r"[\\/]+", "_", stem.removeprefix("./"))


def _line(index: int) -> int:
    return int(index) + 2  # the first row of a table stands under its header


def _refuse_ambiguous(table: pd.DataFrame, root: Path) -> None:
    """Two scans of one id, one file listed twice, text among numbers, an unknown split."""
    for name, what in (("scan", "scan id"), ("path", "file")):
        values = table[name] if name == "scan" else table[name].map(lambda p: str(Path(p)))
        twice = table.index[values.duplicated(keep=False)]
        if len(twice):
            same = values[twice[0]]
            rows = [_line(i) for i in twice if values[i] == same]
            raise DataError(f"{root}: the {what} {same!r} stands in rows {rows} of the manifest; keep one, or give each its own")
    long = [s for s in table["scan"] if len(s) > 150 or re.search(r"[\x00-\x1f]", s)]
    if long:
        raise DataError(f"{root}: the scan id {long[0][:40]!r}... cannot name a file; use 150 printable characters or fewer")
    wrong = table.index[~table["split"].isin(("", "train", "test", "validation"))]
    if len(wrong):
        raise DataError(
            f"{root}: split is {table['split'][wrong[0]]!r} in row {_line(wrong[0])} of the manifest; train, test, validation or empty"
        )
    for name, low, high in (("session_days", -np.inf, np.inf), ("age", 0.0, 130.0)):
        if name not in table:
            continue
        numbers = pd.to_numeric(table[name].where(~table[name].isin(MISSING)), errors="coerce")
        given = ~table[name].isin(MISSING)
        bad = table.index[given & ~(numbers.between(low, high) & np.isfinite(numbers))]
        if len(bad):
            raise DataError(f"{root}: {name} is {table[name][bad[0]]!r} in row {_line(bad[0])} of the manifest; a number is needed, or n/a")
    _refuse_changing(table, root)


def _refuse_changing(table: pd.DataFrame, root: Path) -> None:
    """What cannot change within a patient: two people under one id, or a slip of the pen."""
    for name in CONSTANT_COLUMNS:
        given = table[~table[name].isin(MISSING)] if name in table else table[:0]
        other = given.index[given[name] != given.groupby("patient", sort=False)[name].transform("first")] if len(given) else given.index
        if len(other):
            patient = given["patient"][other[0]]
            rows = given[name][given["patient"] == patient]
            raise DataError(
                f"{root}: patient {patient!r} has {name} {rows.iloc[0]!r} in row {_line(rows.index[0])} and {rows[other[0]]!r} "
                f"in row {_line(other[0])} of the manifest; correct one, or give two people two ids"
            )


@dataclass(frozen=True)
class Collection:
    """What strategies see of the scans: who, when, where and how large; never a voxel.

    table        the manifest, one row a scan; a scan's id is its row number
    shapes       ``Int[n, 3]`` voxels
    affines      ``Float64[n, 4, 4]`` voxel index -> world mm
    body_boxes   ``Int[n, 2, 3]`` first and last-plus-one voxel of the body (the whole scan where there is no mask)
    columns      what a placebo may permute: integer codes (-1: none) for ids, floats for numbers
    patch_size   voxels of a view's grid
    from_world   ``Float64[n, 4, 4]`` world mm -> body mm (default: from the middle of the body's box)
    body_shift   ``Float64[n, 3]`` where a placebo says that things lie elsewhere in the body
    slice_seed   where a placebo says that slices lie elsewhere in their scan
    """

    table: pd.DataFrame
    shapes: np.ndarray
    affines: np.ndarray
    body_boxes: np.ndarray
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    patch_size: Triple = (32, 32, 32)
    from_world: np.ndarray | None = None
    body_shift: np.ndarray | None = None
    slice_seed: int | None = None

    def __len__(self) -> int:
        return len(self.table)

    @staticmethod
    def of(
        table: pd.DataFrame, shapes: np.ndarray, affines: np.ndarray, body_boxes: np.ndarray, from_world: np.ndarray | None = None
    ) -> Collection:
        """Code the manifest's columns and put them beside the geometry."""
        columns: dict[str, np.ndarray] = {}
        for name in table.columns:
            if name in ("scan", "session", "split", *PATH_COLUMNS):
                continue
            numbers = pd.to_numeric(table[name], errors="coerce") if name not in ID_COLUMNS else None
            if numbers is not None and numbers.notna().sum() == table[name].notna().sum():
                columns[name] = numbers.to_numpy(np.float64)
            else:
                codes = pd.factorize(table[name], sort=True)[0]
                columns[name] = codes.astype(np.int64) if name in ID_COLUMNS else np.where(codes < 0, np.nan, codes).astype(np.float64)
        table = table.reset_index(drop=True)
        return Collection(table, np.asarray(shapes), np.asarray(affines), np.asarray(body_boxes), columns, from_world=from_world)

    def column(self, name: str, scans: np.ndarray | slice = slice(None)) -> np.ndarray:
        """A column of the manifest as ``Float64[n]``, of all scans or of some: numbers, or codes of ids and categories.

        NaN where missing. DataError where there is no such column.
        """
        if name not in self.columns:
            raise DataError(f"the manifest has no column {name!r}; there are {', '.join(self.columns)}")
        values = self.columns[name][scans].astype(np.float64)
        return np.where(values < 0, np.nan, values) if name in ID_COLUMNS else values

    def take(self, rows: Sequence[int] | np.ndarray) -> Collection:
        """The same collection with some of its scans. Codes stay as they were."""
        index = np.asarray(rows, dtype=np.int64)
        return replace(
            self,
            table=self.table.iloc[index].reset_index(drop=True),
            shapes=self.shapes[index],
            affines=self.affines[index],
            body_boxes=self.body_boxes[index],
            columns={name: values[index] for name, values in self.columns.items()},
            from_world=None if self.from_world is None else self.from_world[index],
            body_shift=None if self.body_shift is None else self.body_shift[index],
        )

    def with_columns(self, columns: Mapping[str, np.ndarray]) -> Collection:
        """The same collection with some columns replaced."""
        return replace(self, columns={**self.columns, **columns})

    @cached_property
    def _texts(self) -> dict[str, np.ndarray]:
        return {}

    def texts(self, name: str) -> np.ndarray:
        """A column of the table as it was written, ``Object[n]``, NaN where missing: what no placebo permutes."""
        if name not in self._texts:
            self._texts[name] = self.table[name].to_numpy(dtype=object)
        return self._texts[name]

    @cached_property
    def _groups(self) -> dict[tuple[str, ...], tuple[np.ndarray, list[np.ndarray]]]:
        return {}

    def sharing(self, scan: int, *names: str) -> np.ndarray:
        """``Int[n]``: the scans, in order and itself among them, whose ids in all of these columns are those of a scan."""
        if names not in self._groups:  # sorted once: to compare each scan with all others is quadratic in their number
            group = np.unique(np.stack([self.columns[name] for name in names], axis=1), axis=0, return_inverse=True)[1].reshape(-1)
            ends = np.cumsum(np.bincount(group))
            self._groups[names] = group, np.split(np.argsort(group, kind="stable"), ends[:-1])
        group, rows = self._groups[names]
        return rows[group[scan]]

    @cached_property
    def spacings(self) -> np.ndarray:
        """``Float64[n, 3]`` mm per voxel along each axis."""
        return np.linalg.norm(self.affines[:, :3, :3], axis=1)

    @cached_property
    def axes(self) -> np.ndarray:
        """``Float64[n, 3, 3]``: column k is the direction of voxel axis k in the world."""
        return self.affines[:, :3, :3] / self.spacings[:, None, :]

    @cached_property
    def body(self) -> BodyCoordinates:
        """Where things lie in the body."""
        found = self.from_world
        if found is None:
            found = np.array([middle_of_body(a, box) for a, box in zip(self.affines, self.body_boxes, strict=True)]).reshape(-1, 4, 4)
        coordinates = BodyCoordinates.of(found, self.affines, self.body_boxes)
        return coordinates if self.body_shift is None else replace(coordinates, shift=self.body_shift)

    def world(self, scans: np.ndarray, voxels: np.ndarray) -> np.ndarray:
        """World mm of voxel coordinates (fractions allowed, a voxel's centre is at its index): ``[N, 3]`` -> ``[N, 3]``."""
        affines = self.affines[scans]
        return np.einsum("nij,nj->ni", affines[:, :3, :3], voxels) + affines[:, :3, 3]

    def matched(self, scan: int, other: int, voxel: np.ndarray) -> np.ndarray:
        """World mm in `other` of the place that `voxel` has in `scan`, ``Float64[3]``.

        In one frame that is the same point of the world; else the same position in body coordinates.
        """
        place: np.ndarray = self.world(np.array([scan]), voxel[None])[0]
        if self.share_frame(scan, other):
            return place
        from_world = self.body.from_world[scan]
        return self.body.to_world(other, from_world[:3, :3] @ place + from_world[:3, 3])

    def share_frame(self, scan: int, other: int) -> bool:
        """Whether two scans have one world."""
        frame = self.columns.get("frame")
        return scan == other or (frame is not None and bool(frame[scan] == frame[other]))

    def fraction(self, scans: np.ndarray, voxels: np.ndarray) -> np.ndarray:
        """Voxel coordinates as shares of the body's extent along the scan's axes: ``[N, 3]`` -> ``Float64[N, 3]``."""
        low, stop = self.body_boxes[scans, 0], self.body_boxes[scans, 1]
        share: np.ndarray = (voxels - low + 0.5) / (stop - low)
        return share if self.body_shift is None else np.mod(share + self.body_shift[scans], 1.0)

    def keys(self, views: Sequence[ViewSpec], sample: np.ndarray, view: np.ndarray) -> Keys:
        """The keys of some views, one row a view.

        sample, view: ``Int[N]``, the run-wide sample each view belongs to and its number there.
        """
        scans = np.array([v.scan for v in views], dtype=np.int64)
        boxes = [v.told or v.box for v in views]
        sizes = np.array([box.size for box in boxes], dtype=np.float64)
        middle = np.array([box.center for box in boxes])
        center = self.world(scans, middle)
        count = len(views)
        own = ("patient", "modality", "frame", "session_days", "class")

        def ids(name: str, default: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(self.columns[name][scans] if name in self.columns else default)

        none = np.full(count, -1, dtype=np.int64)
        days = self.columns["session_days"][scans] if "session_days" in self.columns else np.full(count, np.nan)
        return Keys(
            sample=torch.from_numpy(np.asarray(sample, dtype=np.int64)),
            view=torch.from_numpy(np.asarray(view, dtype=np.int64)),
            scan=torch.from_numpy(scans),
            frame=ids("frame", scans),
            patient=ids("patient", none),
            modality=ids("modality", none),
            label=ids("class", none),
            session_days=torch.from_numpy(days),
            center_mm=torch.from_numpy(center),
            size_mm=torch.from_numpy(sizes * self.spacings[scans]),
            axes=torch.from_numpy(self.axes[scans]),
            body=torch.from_numpy(self.body.place(scans, center)),
            fraction=torch.from_numpy(self.fraction(scans, middle)),
            point=torch.from_numpy(none.copy()),
            position_mm=torch.full((count, 3), torch.nan, dtype=torch.float64),
            metadata={name: torch.from_numpy(values[scans]) for name, values in self.columns.items() if name not in own},
        )

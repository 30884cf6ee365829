"""Files of features: one safetensors file per scan, or one table."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from medcl3d.core.errors import ConfigError
from medcl3d.downstream.predict.inputs import InputScan, missing, origin_of, origin_or_none, stem
from medcl3d.io.atomic import open_atomic
from medcl3d.preprocessing.ready_scan import ReadyScan

TABLE = "features.csv"
SECONDS_BETWEEN_WRITES = 30


@dataclass
class FeatureFiles:
    """One safetensors file per scan; its metadata names its origin.

    written  the files so far
    """

    folder: Path
    identity: str
    written: list[Path] = field(default_factory=list)

    def file_of(self, one: InputScan) -> Path:
        """The file that a scan's features go to."""
        return self.folder / f"{stem(one.name)}.safetensors"

    def missing(self, scans: Sequence[InputScan], force: bool) -> list[InputScan]:
        """The scans without features of this origin. ConfigError: files of another origin exist."""
        return missing(scans, self.identity, lambda one: [self.file_of(one)], _origin_in, force)

    def write(self, one: InputScan, features: Tensor, ready: ReadyScan) -> None:
        tensors = {"features": features.contiguous()}
        if features.ndim == 4:
            tensors["affine"] = torch.from_numpy(ready.own_affine.copy())
        metadata = {"format": "pt", "scan": one.name, "origin": origin_of(one, self.identity)}
        file = self.file_of(one)
        file.parent.mkdir(parents=True, exist_ok=True)
        with open_atomic(file) as out:
            out.write(to_safetensors(tensors, metadata=metadata))
        self.written.append(file)

    def finish(self) -> None:
        """Every file is written already."""


def _origin_in(file: Path) -> str:
    try:
        with safe_open(file, "pt") as found:
            return str((found.metadata() or {}).get("origin", ""))
    except (SafetensorError, OSError):
        return ""


@dataclass
class FeatureTable:
    """One table in a folder with a row per scan, replaced as a whole at intervals and at the end."""

    folder: Path
    identity: str
    rows: dict[str, list[str]] = field(default_factory=dict)
    written: list[Path] = field(default_factory=list)
    _fresh: bool = False
    _at: float = field(default_factory=time.monotonic)

    @property
    def path(self) -> Path:
        """The file of the table."""
        return self.folder / TABLE

    def file_of(self, one: InputScan) -> Path:
        return self.path

    def missing(self, scans: Sequence[InputScan], force: bool) -> list[InputScan]:
        try:
            with self.path.open(encoding="utf-8", newline="") as file:
                header, *rows = csv.reader(file)
            if header[:2] != ["scan", "origin"]:
                raise ValueError
            before = {row[0]: row for row in rows}
        except FileNotFoundError:
            before = {}
        except (OSError, ValueError, IndexError):
            before = {}
            if not force:
                problem, remedy = f"{self.path} is not a table of features", "give another folder, or --force"
                raise ConfigError(problem=problem, remedy=remedy, place="--out") from None
        names = {one.name for one in scans}
        wanted = {one.name: origin_or_none(one, self.identity) for one in scans if one.name in before}
        foreign = [name for name, row in before.items() if name not in names or wanted[name] != row[1]]
        if foreign and not force:
            raise ConfigError(
                problem=f"{self.path} holds {len(foreign)} rows, as that of {foreign[0]}, that were not "
                "computed by this run from these scans",
                remedy="give another folder, or --force to replace the table",
                place="--out",
            )
        self.rows = {} if force else before
        return [one for one in scans if one.name not in self.rows]

    def write(self, one: InputScan, features: Tensor, ready: ReadyScan) -> None:
        self.rows[one.name] = [
            one.name,
            origin_of(one, self.identity),
            *(f"{value:.9g}" for value in features.tolist()),
        ]
        self._fresh = True
        if time.monotonic() - self._at > SECONDS_BETWEEN_WRITES:
            self.finish()

    def finish(self) -> None:
        if not self._fresh:
            return
        width = max(map(len, self.rows.values())) - 2
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["scan", "origin", *(f"f{i}" for i in range(width))])
        writer.writerows(self.rows[name] for name in sorted(self.rows))
        with open_atomic(self.path) as file:
            file.write(text.getvalue().encode())
        self.written, self._fresh, self._at = [self.path], False, time.monotonic()

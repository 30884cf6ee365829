"""`medcl3d features`: features of new scans from a pretrained encoder, as files."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from medcl3d.core.errors import ConfigError, DataError, UserError, Word, unexpected_error
from medcl3d.distributed.collectives import process_group
from medcl3d.distributed.precision import autocast_dtype
from medcl3d.downstream.predict.inputs import InputScan, is_volume, reason_of, scans_of
from medcl3d.downstream.pretrained_encoder import PretrainedEncoder, load_encoder
from medcl3d.downstream.scan_features import (
    Extraction,
    intensity_kind,
    refuse_unreadable,
    scan_features,
)
from medcl3d.io.atomic import open_atomic
from medcl3d.io.disk_space import require_writable
from medcl3d.io.nifti import content_sha256
from medcl3d.preprocessing.ready_scan import ReadyScan

TABLE = "features.csv"
SECONDS_BETWEEN_WRITES = 30


def write_features(
    run: Path,
    target: Path,
    out: Path,
    *,
    file_format: str = "safetensors",
    dense: bool = False,
    intensity: str | None = None,
    force: bool = False,
    check: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Write features of a scan, or of all below a folder, and return the files.

    Features that an earlier call wrote for the same run and scans are kept.

    run          a pretraining's run folder, or its encoder.safetensors
    target       a NIfTI file, or a folder of NIfTI files and DICOM series
    out          a folder
    file_format  safetensors: OUT/NAME.safetensors with `features` ``Float32[F]``, or with `dense`
                 ``Float32[C, X, Y, Z]`` and `affine` ``Float64[4, 4]``, voxel -> RAS+ mm; csv:
                 OUT/features.csv, one row per scan: scan, origin, f0, f1, ...
    intensity    mri, ct or none: how to normalise, if the encoder was trained on several kinds
    force        replace files of another origin; without it they are refused before anything is computed
    check        read headers only, report what would be written, and write nothing

    ConfigError: the run, the target or the outputs are wrong. DataError, after all other scans are done: some
    were refused. MachineError: nothing can be written.
    """
    if file_format not in ("safetensors", "csv"):
        raise ConfigError("--format", Word(file_format), "use safetensors or csv")
    if dense and file_format == "csv":
        raise ConfigError(
            "--format",
            Word("csv"),
            "a table holds one vector per scan, not maps",
            "use --format safetensors, or leave --dense out",
        )
    if is_volume(out.name) or out.is_file():
        raise ConfigError("--out", out, "features are written into a folder", "give one")
    encoder = load_encoder(run)
    extraction = Extraction(dense, None, 0.5, 4, intensity_kind(encoder, intensity, "--intensity"))
    with scans_of(target, out, say) as (scans, refused), process_group() as device:
        dtype = autocast_dtype("auto", device)
        identity = _identity(encoder, extraction, dtype)
        output: _Output = _Table(out / TABLE, identity) if file_format == "csv" else _Files(out, identity)
        require_writable(out, "--out")
        left = output.missing(scans, force)
        if len(left) < len(scans):
            say(
                f"{len(scans) - len(left)} of {len(scans)} scans have features of this run already and are "
                f"kept; {len(left)} to do"
            )
        if check:
            _forecast(encoder, output, left, refused, say)
            return []
        out.mkdir(parents=True, exist_ok=True)
        encoder.to(device)
        cause: Exception | None = None
        done = 0
        console = Console(stderr=True)
        try:
            for one in track(left, "extracting", console=console, disable=not console.is_terminal):
                try:
                    found, ready = scan_features(encoder, one.path, extraction, dtype, note=_naming(one, say))
                except DataError as error:
                    reason = reason_of(error, encoder.intensity, "encoder", one)
                except UserError:
                    raise
                except Exception as error:  # of one file: the other scans are still computed
                    reason, cause = unexpected_error(one.shown, error), error
                else:
                    output.write(one, found, ready)
                    done += 1
                    continue
                refused.append(reason)
                say(reason)
        finally:
            output.finish()
    if refused:
        raise DataError(
            f"{len(refused)} scans have no features, {done} were computed: {refused[0]}"
        ) from cause
    what = "maps" if dense else f"vectors of {encoder.num_features} features"
    say(f"{len(scans)} scans: {what} in {out / TABLE if file_format == 'csv' else out}")
    return output.written


def _naming(one: InputScan, say: Callable[[str], None]) -> Callable[[str], None]:
    return lambda text: say(f"warning: {text}".replace(str(one.path), one.shown))


def _forecast(
    encoder: PretrainedEncoder,
    output: _Output,
    scans: Sequence[InputScan],
    refused: list[str],
    say: Callable[[str], None],
) -> None:
    """Report what would be written, from headers alone. DataError: the encoder does not take some scans."""
    for one in scans:
        try:
            refuse_unreadable(encoder, one.path)
        except DataError as error:
            refused.append(reason_of(error, encoder.intensity, "encoder", one))
            say(refused[-1])
            continue
        say(f"{one.name} would be written to {output.file_of(one)}")
    if refused:
        raise DataError(f"{len(refused)} scans would have no features, of {len(scans)}: {refused[0]}")
    say(
        f"{len(scans)} scans would get features; their headers are right, voxels are read when it runs; "
        "nothing was written"
    )


def _identity(encoder: PretrainedEncoder, extraction: Extraction, dtype: torch.dtype | None) -> str:
    """What features depend on beside the scan: weights, sidecar, and how they are computed."""
    content = encoder.path.read_bytes() + encoder.path.with_suffix(".json").read_bytes()
    return f"{hashlib.sha256(content).hexdigest()} {extraction} {dtype}"


def _origin(one: InputScan, identity: str) -> str:
    """A hash of the run and of the scan's content. DataError: the scan cannot be read."""
    return hashlib.sha256(f"{identity} {content_sha256(one.path)}".encode()).hexdigest()


class _Output(Protocol):
    """Where features go."""

    written: list[Path]

    def missing(self, scans: Sequence[InputScan], force: bool) -> list[InputScan]:
        """The scans without features of this origin. ConfigError: files of another origin exist."""

    def file_of(self, one: InputScan) -> Path:
        """The file that a scan's features go to."""

    def write(self, one: InputScan, features: Tensor, ready: ReadyScan) -> None:
        """Keep the features of one scan."""

    def finish(self) -> None:
        """Write rows that are not on disk yet."""


@dataclass
class _Files:
    """One safetensors file per scan; its metadata names its origin."""

    folder: Path
    identity: str
    written: list[Path] = field(default_factory=list)

    def file_of(self, one: InputScan) -> Path:
        name = re.sub(r"\.nii(\.gz)?$", "", one.name, flags=re.IGNORECASE)
        return self.folder / f"{name}.safetensors"

    def missing(self, scans: Sequence[InputScan], force: bool) -> list[InputScan]:
        files: dict[Path, InputScan] = {}
        for one in scans:
            other = files.setdefault(self.file_of(one), one)
            if other is not one:
                raise ConfigError(
                    problem=f"{other.name} and {one.name} would both be written to {self.file_of(one)}",
                    remedy="rename one",
                    place="--out",
                )
        if force:
            return list(scans)
        left, foreign = [], []
        for file, one in files.items():
            if not file.exists():
                left.append(one)
            elif _origin_in(file) != _origin_or_none(one, self.identity):
                foreign.append(file)
        if foreign:
            raise ConfigError(
                problem=f"{len(foreign)} files exist already, as {foreign[0]}, that were not computed by "
                "this run from these scans",
                remedy="give another folder, or --force to replace them",
                place="--out",
            )
        return left

    def write(self, one: InputScan, features: Tensor, ready: ReadyScan) -> None:
        tensors = {"features": features.contiguous()}
        if features.ndim == 4:
            tensors["affine"] = torch.from_numpy(ready.own_affine.copy())
        metadata = {"format": "pt", "scan": one.name, "origin": _origin(one, self.identity)}
        file = self.file_of(one)
        file.parent.mkdir(parents=True, exist_ok=True)
        with open_atomic(file) as out:
            out.write(to_safetensors(tensors, metadata=metadata))
        self.written.append(file)

    def finish(self) -> None:
        """Every file is written already."""


def _origin_in(file: Path) -> str | None:
    try:
        with safe_open(file, "pt") as found:
            return (found.metadata() or {}).get("origin")
    except (SafetensorError, OSError):
        return None


def _origin_or_none(one: InputScan, identity: str) -> str:
    try:
        return _origin(one, identity)
    except DataError:
        return "not readable now"


@dataclass
class _Table:
    """One table with a row per scan, replaced as a whole at intervals and at the end."""

    path: Path
    identity: str
    rows: dict[str, list[str]] = field(default_factory=dict)
    written: list[Path] = field(default_factory=list)
    _fresh: bool = False
    _at: float = field(default_factory=time.monotonic)

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
                raise ConfigError(
                    problem=f"{self.path} is not a table of features",
                    remedy="give another folder, or --force",
                    place="--out",
                ) from None
        names = {one.name for one in scans}
        wanted = {one.name: _origin_or_none(one, self.identity) for one in scans if one.name in before}
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
            _origin(one, self.identity),
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

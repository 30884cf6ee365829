"""`medcl3d predict`: segment raw scans with a fine-tuned network; label maps are on the grid of each scan."""

from __future__ import annotations

import gzip
import hashlib
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import nibabel
import numpy as np
import torch
from pydantic.dataclasses import dataclass as validated
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from medcl3d.config.choices import choice_of
from medcl3d.config.field_types import STRICT
from medcl3d.config.loading import parse
from medcl3d.core.errors import ConfigError, DataError, MachineError, UserError, Word
from medcl3d.core.geometry import Triple, triple
from medcl3d.distributed.collectives import process_group
from medcl3d.distributed.precision import autocast_dtype
from medcl3d.downstream.heads import Segmenter
from medcl3d.downstream.predict.inputs import InputScan, is_volume, missing, reason_of, scans_of, stamp_of
from medcl3d.downstream.predict.scan_grid import classes_on
from medcl3d.downstream.tasks import TASKS
from medcl3d.downstream.tasks.segmentation import Segmentation
from medcl3d.downstream.transfer import compare, read_sidecar
from medcl3d.encoders import ENCODERS
from medcl3d.encoders.network import build_network
from medcl3d.io.atomic import open_atomic
from medcl3d.io.disk_space import require_writable
from medcl3d.io.nifti import read_header
from medcl3d.preprocessing.read_scan import num_channels
from medcl3d.preprocessing.ready_scan import ReadyScan, ready_scan
from medcl3d.preprocessing.scan_task import ScanTask
from medcl3d.training.run_folder import read_status

WEIGHTS = "model.safetensors"
NEEDED = ("task", "architecture", "label_names", "in_channels", "intensity", "spacing_mm", "patch_size")
SPACING_TOLERANCE = 0.25  # relative difference of voxel size from training that gives a warning
GEOMETRY = ("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x",
"qoffset_y", "qoffset_z",
               "srow_x", "srow_y", "srow_z", "xyzt_units")  # fmt: skip


@validated(frozen=True, kw_only=True, config=STRICT)
class _Described:
    task: choice_of(TASKS)  # type: ignore[valid-type]
    encoder: choice_of(ENCODERS)  # type: ignore[valid-type]


@dataclass(frozen=True)
class Predictor:
    """A trained segmentation network with the preparation of its scans.

    classes     label value -> name, sorted; index 0 of the model is background
    options     options of preparation, from the sidecar
    spacing_mm  median over the training scans
    identity    SHA-256 of weights and sidecar, and the intensity normalisation; equal for runs with the same
                labels
    """

    model: nn.Module
    task: Segmentation
    classes: dict[int, str]
    options: dict[str, Any]
    patch_size: Triple
    num_channels: int
    spacing_mm: tuple[float, ...]
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    identity: str = ""


def predict(
    run: Path,
    target: Path,
    out: Path,
    *,
    probabilities: bool = False,
    intensity: str | None = None,
    force: bool = False,
    check: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Segment a scan, or all scans of a folder; returns the files written. Files of an earlier call are kept.

    run            a finished fine-tuning of the task segmentation
    target         a NIfTI file, or a folder of NIfTI files and DICOM series
    out            a file .nii.gz for one scan, else a folder, in which a scan keeps its path relative to
                   `target`
    probabilities  also write NAME_probabilities.nii.gz, ``[X, Y, Z, K]``, background first
    intensity      mri, ct or none: normalisation of these scans, if the run was trained on several kinds
    force          replace existing files; without it, files of another origin are refused before any scan is
                   segmented
    check          dry run: read headers, report the files that would be written, and write nothing

    ConfigError: invalid run, target or output paths. DataError, after all other scans are done: some scans
    were refused. MachineError: files cannot be written.
    """
    predictor = load_run(run, intensity)
    with scans_of(target, out, say) as (scans, refused):
        remaining = missing(scans, predictor.identity, probabilities, force)
        if len(remaining) < len(scans):
            say(
                f"{len(scans) - len(remaining)} of {len(scans)} scans were segmented by this run before and "
                f"are kept; {len(remaining)} remaining"
            )
        require_writable(out.parent if is_volume(out.name) else out, "--out")
        if check:
            return _dry_run(predictor, remaining, refused, probabilities, say)
        written: list[Path] = []
        done = 0
        console = Console(stderr=True)
        cause: Exception | None = None
        with process_group() as device:
            for one in track(remaining, "segmenting", console=console, disable=not console.is_terminal):
                try:
                    volumes = _segmented(predictor, one, device, probabilities, say)
                except DataError as error:
                    reason = reason_of(error, predictor.options, "run", one)
                except UserError:
                    raise
                except Exception as error:  # from any library: the other scans are still segmented
                    reason, cause = (
                        f"{one.shown}: cannot be segmented: {_short(error)}; inspect this file, and segment "
                        "it alone",
                        error,
                    )
                else:
                    written += _write(volumes, one, predictor.identity, done, force)
                    done += 1
                    continue
                refused.append(reason)
                say(reason)
    if refused:
        raise DataError(f"{len(refused)} scans were not segmented, {done} were: {refused[0]}") from cause
    named = ", ".join(f"{value} {name}" for value, name in predictor.classes.items())
    say(f"{len(scans)} scans segmented in {out}: 0 background, {named}")
    return written


def _dry_run(
    predictor: Predictor,
    scans: Sequence[InputScan],
    refused: list[str],
    probabilities: bool,
    say: Callable[[str], None],
) -> list[Path]:
    """Report the files that would be written, from headers only.

    DataError if some scans do not fit the network.
    """
    for one in scans:
        try:
            _refuse_channels(
                predictor,
                one.path,
                num_channels(one.path, read_header(one.path).shape, predictor.options["channels"]),
            )
        except DataError as error:
            refused.append(reason_of(error, predictor.options, "run", one))
            say(refused[-1])
            continue
        say(f"{one.name} would be written to {' and '.join(map(str, one.files(probabilities)))}")
    if refused:
        raise DataError(f"{len(refused)} scans would not be segmented, of {len(scans)}: {refused[0]}")
    say(
        f"{len(scans)} scans would be segmented; their headers are valid, voxels were not read; nothing was "
        "written"
    )
    return []


def load_run(run: Path, intensity: str | None = None) -> Predictor:
    """Load the segmentation network of a run folder.

    ConfigError if there is none, or the run has not finished.
    """
    path = run / WEIGHTS
    if not path.is_file():
        state = read_status(run).get("state") if run.is_dir() else None
        why = (
            f"its run is {state}; let it finish"
            if state
            else "not a run folder of a fine-tuning; use one, for example runs/fine"
        )
        raise ConfigError(problem=f"holds no {WEIGHTS}, {why}", place=run)
    sidecar = read_sidecar(path)
    lacking = [name for name in NEEDED if name not in sidecar]
    if lacking:
        raise ConfigError(
            problem=f"lacks {', '.join(lacking)}",
            remedy="copy it from the run folder again",
            place=path.with_suffix(".json"),
        )
    described = parse(
        {"task": sidecar["task"], "encoder": sidecar["architecture"]},
        _Described,
        str(path.with_suffix(".json")),
    )
    task = TASKS.build(described.task)
    if not isinstance(task, Segmentation):
        raise ConfigError(
            problem=f"was trained for {described.task.name}, but predict writes label maps",
            remedy="use a run of segmentation",
            place=run,
        )
    classes = task.chosen(
        {int(value): name for value, name in sidecar["label_names"].items()}, path.with_suffix(".json")
    )
    channels = int(sidecar["in_channels"])
    model = Segmenter(build_network(described.encoder, channels, decoder=True), 1 + len(classes))
    try:
        weights = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(
            problem=f"not a complete safetensors file ({error})",
            remedy="fine-tune again, or copy it again",
            place=path,
        ) from None
    mismatch = compare(weights, model.state_dict())
    if mismatch.any:
        raise ConfigError(
            problem=f"not the network of {path.with_suffix('.json').name}: {mismatch.words()}",
            remedy="copy both again",
            place=path,
        )
    model.load_state_dict(weights)
    options = {**sidecar["intensity"], "kind": _kind(run, str(sidecar["intensity"]["kind"]), intensity)}
    spacing, precision = tuple(sidecar["spacing_mm"]), sidecar.get("precision", "auto")
    content = path.read_bytes() + path.with_suffix(".json").read_bytes()
    identity = f"{hashlib.sha256(content).hexdigest()} {options['kind']}"
    return Predictor(
        model, task, classes, options, triple(sidecar["patch_size"]), channels, spacing, precision, identity
    )


def _kind(run: Path, trained: str, intensity: str | None) -> str:
    kinds = trained.split("+")
    if intensity is None and len(kinds) > 1:
        raise ConfigError(
            problem=f"trained on intensities of kinds {trained}",
            remedy=f"set that of these scans, as --intensity {kinds[0]}",
            place=run,
        )
    if intensity is not None and intensity not in kinds:
        raise ConfigError(
            "--intensity", Word(intensity), f"{run} was trained on {trained}", f"use {' or '.join(kinds)}"
        )
    return intensity or kinds[0]


def segment(
    predictor: Predictor, path: Path, device: torch.device | None = None, *, keep: bool = False
) -> tuple[np.ndarray, np.ndarray | None, ReadyScan]:
    """Label values ``Int16[X, Y, Z]`` on the grid of a file, with `keep` also probabilities ``Float32[K, X,
    Y, Z]``, and the scan.

    DataError if the file is not a scan that fits the network.
    """
    device = device or torch.device("cpu")
    ready = ready_scan(ScanTask.like(predictor.options, path.name, path))
    _refuse_channels(predictor, path, len(ready.stored))
    model = predictor.model.to(device)
    volume = torch.from_numpy(ready.voxels)
    dtype = autocast_dtype(predictor.precision, device)
    found = predictor.task.probabilities(
        model, volume, ready.normalisation.fill, predictor.patch_size, device, dtype
    )
    to_prepared = np.linalg.inv(ready.affine) @ ready.own_affine
    cropped = predictor.options.get("crop", "none") != "none"
    indices, shares = classes_on(
        ready.image.voxels.shape[1:], found.cpu().numpy(), to_prepared, cropped=cropped, keep=keep
    )
    values = np.array([0, *predictor.classes], dtype=np.int16)
    return values[indices], shares, ready


def _refuse_channels(predictor: Predictor, path: Path, channels: int) -> None:
    if channels != predictor.num_channels:
        raise DataError(path, f"has {channels} channels, the network takes {predictor.num_channels}")


def _segmented(
    predictor: Predictor,
    one: InputScan,
    device: torch.device,
    probabilities: bool,
    say: Callable[[str], None],
) -> list[np.ndarray]:
    """Labels, and with `probabilities` class probabilities ``[X, Y, Z, K]``, on the grid of a scan."""
    labels, shares, ready = segment(predictor, one.path, device, keep=probabilities)
    spacing = np.linalg.norm(ready.affine[:3, :3], axis=0)
    if not np.allclose(spacing, predictor.spacing_mm, rtol=SPACING_TOLERANCE):
        scanned, trained = (
            ", ".join(f"{v:.3g}" for v in values) for values in (spacing, predictor.spacing_mm)
        )
        say(
            f"{one.shown}: warning: {scanned} mm per voxel, the network was trained at {trained}; "
            "prepare the training scans with a spacing_mm"
        )
    for warning in ready.warnings:
        say(f"{one.shown}: warning: {warning}")
    kind = np.uint8 if labels.max(initial=0) < 256 else np.int16
    return [labels.astype(kind)] if shares is None else [labels.astype(kind), np.moveaxis(shares, 0, -1)]


def _write(
    volumes: Sequence[np.ndarray], one: InputScan, identity: str, done: int, force: bool
) -> list[Path]:
    """Write the missing files of a scan.

    MachineError if that fails (a full disk), since the remaining scans would fail too.
    """
    files = [
        (file, voxels)
        for file, voxels in zip(one.files(len(volumes) > 1), volumes, strict=True)
        if force or not file.exists()
    ]
    stamp = stamp_of(one, identity)
    try:
        for file, voxels in files:
            _write_nifti(file, voxels, one.path, stamp)
    except OSError as error:
        why = error.strerror or error
        raise MachineError(
            one.output, why, f"{done} scans are done. Free disk space, or choose another folder"
        ) from None
    return [file for file, _ in files]


def _short(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__} {error}", 300)


def _write_nifti(file: Path, voxels: np.ndarray, scan: Path, stamp: str) -> None:
    """Write voxels with only the geometry of the scan's header, since other fields may identify a patient."""
    header = cast(Any, nibabel.load(scan)).header
    image = (nibabel.Nifti1Image if header.sizeof_hdr == 348 else nibabel.Nifti2Image)(voxels, None)
    for name in GEOMETRY:
        image.header[name] = header[name]
    image.header["descrip"] = stamp.encode()
    content = image.to_bytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    with open_atomic(file) as out:
        out.write(
            gzip.compress(content, compresslevel=6, mtime=0) if file.name.lower().endswith(".gz") else content
        )

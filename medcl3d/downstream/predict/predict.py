"""`medcl3d predict`: segment raw scans with a fine-tuned network; label maps are on the grid of each scan."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
import torch
from nibabel.filebasedimages import ImageFileError

from medcl3d.core.errors import MachineError
from medcl3d.distributed.collectives import process_group
from medcl3d.distributed.precision import autocast_dtype
from medcl3d.downstream.predict.inputs import InputScan, is_volume, missing, origin_of, scans_of
from medcl3d.downstream.predict.predictor import Predictor, load_run
from medcl3d.downstream.predict.scan_grid import classes_on
from medcl3d.downstream.predict.scan_loop import ScanLoop
from medcl3d.downstream.trained_scan import other_spacing, prepared, refuse_header
from medcl3d.io.atomic import open_atomic
from medcl3d.io.disk_space import require_writable
from medcl3d.preprocessing.ready_scan import ReadyScan

ORIGIN = "medcl3d "  # before the origin in a header
GEOMETRY = ("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x",
"qoffset_y", "qoffset_z",
               "srow_x", "srow_y", "srow_z", "xyzt_units")  # fmt: skip


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
    out            a file .nii.gz for one scan, else a folder with the relative paths of `target`
    probabilities  also write NAME_probabilities.nii.gz, ``[X, Y, Z, K]``, background first
    intensity      mri, ct or none: normalisation of these scans, if the run was trained on several kinds
    force          replace existing files; without it, files of another origin are refused at the start
    check          dry run: read headers, report the files that would be written, and write nothing

    ConfigError: invalid run, target or output paths. DataError, after all other scans are done: some scans
    were refused. MachineError: files cannot be written.
    """
    predictor = load_run(run, intensity)
    with scans_of(target, out, say) as (scans, refused):
        remaining = missing(
            scans, predictor.identity, lambda one: one.files(probabilities), _origin_in, force
        )
        loop = ScanLoop(remaining, refused, predictor.options, "run", "segmented", say)
        loop.report_kept(len(scans))
        require_writable(out.parent if is_volume(out.name) else out, "--out")
        if check:
            loop.dry_run(
                lambda path: refuse_header(path, predictor.options, predictor.num_channels, "network"),
                lambda one: one.files(probabilities),
            )
            return []
        written: list[Path] = []

        def write(one: InputScan, volumes: list[np.ndarray]) -> None:
            written.extend(_write(volumes, one, predictor.identity, loop.done, force))

        with process_group() as device:
            loop.run(lambda one: _segmented(predictor, one, device, probabilities, say), write)
    named = ", ".join(f"{value} {name}" for value, name in predictor.classes.items())
    say(f"{len(scans)} scans segmented in {out}: 0 background, {named}")
    return written


def _segmented(
    predictor: Predictor,
    one: InputScan,
    device: torch.device,
    probabilities: bool,
    say: Callable[[str], None],
) -> list[np.ndarray]:
    """Labels, and with `probabilities` class probabilities ``[X, Y, Z, K]``, on the grid of a scan."""
    labels, shares, ready = segment(predictor, one.path, device, keep=probabilities)
    differs = other_spacing(ready, predictor.spacing_mm)
    if differs:
        say(
            f"{one.shown}: warning: {differs[0]} mm per voxel, the network was trained at {differs[1]}; "
            "prepare the training scans with a spacing_mm"
        )
    for warning in ready.warnings:
        say(f"{one.shown}: warning: {warning}")
    small = smallest(labels)
    return [small] if shares is None else [small, np.moveaxis(shares, 0, -1)]


def segment(
    predictor: Predictor, path: Path, device: torch.device | None = None, *, keep: bool = False
) -> tuple[np.ndarray, np.ndarray | None, ReadyScan]:
    """Label values ``Int16[X, Y, Z]`` on the grid of a file, probabilities, and the scan.

    keep  also return probabilities ``Float32[K, X, Y, Z]``, else None

    DataError if the file is not a scan that fits the network.
    """
    device = device or torch.device("cpu")
    ready = prepared(path, predictor.options, predictor.num_channels, "network")
    model = predictor.model.to(device)
    volume = torch.from_numpy(ready.voxels)
    dtype = autocast_dtype(predictor.precision, device)
    found = predictor.task.probabilities(
        model, volume, ready.normalisation.fill, predictor.patch_size, device, dtype
    )
    return *labels_of(predictor, found, ready, keep=keep), ready


def labels_of(
    predictor: Predictor, found: torch.Tensor, ready: ReadyScan, *, keep: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """Label values ``Int16[X, Y, Z]`` on the grid of a file, and probabilities if `keep`.

    found  probabilities ``Float32[K, D, H, W]`` on the prepared grid, background first
    """
    to_prepared = np.linalg.inv(ready.affine) @ ready.own_affine
    cropped = predictor.options.get("crop", "none") != "none"
    indices, shares = classes_on(
        ready.image.voxels.shape[1:], found.cpu().numpy(), to_prepared, cropped=cropped, keep=keep
    )
    values = np.array([0, *predictor.classes], dtype=np.int16)
    return values[indices], shares


def smallest(labels: np.ndarray) -> np.ndarray:
    """Label values in one byte each if they fit."""
    return labels.astype(np.uint8 if labels.max(initial=0) < 256 else np.int16)


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
    origin = origin_of(one, identity)
    try:
        for file, voxels in files:
            write_nifti(file, voxels, one.path, origin)
    except OSError as error:
        why = error.strerror or error
        raise MachineError(
            one.output, why, f"{done} scans are done. Free disk space, or choose another folder"
        ) from None
    return [file for file, _ in files]


def write_nifti(file: Path, voxels: np.ndarray, scan: Path, origin: str) -> None:
    """Write voxels with only the geometry of the scan's header, since other fields may identify a patient."""
    header = cast(Any, nibabel.load(scan)).header
    kind: Any = nibabel.Nifti1Image if header.sizeof_hdr == 348 else nibabel.Nifti2Image
    image = kind(voxels, None)
    for name in GEOMETRY:
        image.header[name] = header[name]
    image.header["descrip"] = f"{ORIGIN}{origin}".encode()  # 72 of its 80 bytes
    content = image.to_bytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    with open_atomic(file) as out:
        packed = file.name.lower().endswith(".gz")
        out.write(gzip.compress(content, compresslevel=6, mtime=0) if packed else content)


def _origin_in(file: Path) -> str:
    """The origin in the header of a file; "" if it has none, or is not a NIfTI file."""
    try:
        header = cast(Any, nibabel.load(file)).header if file.is_file() else None
        text = str(header["descrip"].item().decode()) if header is not None else ""
    except (ImageFileError, OSError, EOFError, KeyError, ValueError):  # written by another program
        return ""
    return text.removeprefix(ORIGIN) if text.startswith(ORIGIN) else ""

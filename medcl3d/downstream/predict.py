"""`medcl3d predict`: a fine-tuned segmentation on scans as they lie on a disk, with labels on each scan's own grid."""

from __future__ import annotations

import gzip
import hashlib
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
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

from medcl3d.config import STRICT, choice_of, parse
from medcl3d.data.atomic import replacing
from medcl3d.data.check import num_channels
from medcl3d.data.nifti import read_header
from medcl3d.data.room import refuse_unwritable
from medcl3d.data.scan import ReadyScan, ScanTask, ready_scan
from medcl3d.downstream import TASKS
from medcl3d.downstream.asked import Asked, is_volume, missing, scans_of, stamp_of
from medcl3d.downstream.heads import Segmenter
from medcl3d.downstream.own_grid import classes_on
from medcl3d.downstream.segmentation import Segmentation
from medcl3d.downstream.transfer import compare, read_sidecar
from medcl3d.encoders import ENCODERS
from medcl3d.encoders.network import build_network
from medcl3d.errors import ConfigError, DataError, MachineError, UserError
from medcl3d.training.distributed import process_group
from medcl3d.training.logs import read_status
from medcl3d.training.precision import autocast_dtype
from medcl3d.types import Triple, triple

WEIGHTS = "model.safetensors"
NEEDED = ("task", "architecture", "label_names", "in_channels", "intensity", "spacing_mm", "patch_size")
SPACING_TOLERANCE = 0.25  # of a scan's voxel size, from the one that the network was trained on, before it is said
SETTLED = ("nonfinite", "channels", "assume_spacing_mm", "spacing_mm", "intensity", "window_hu", "percentiles", "store_as")
GEOMETRY = ("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
               "srow_x", "srow_y", "srow_z", "xyzt_units")  # fmt: skip


@validated(frozen=True, kw_only=True, config=STRICT)
class _Described:
    task: choice_of(TASKS)  # type: ignore[valid-type]
    encoder: choice_of(ENCODERS)  # type: ignore[valid-type]


@dataclass(frozen=True)
class Predictor:
    """A trained segmentation with all that a new scan has to go through before it.

    classes     label value -> name, sorted; index 0 of the model is background
    options     how scans were prepared, as in the sidecar
    spacing_mm  median of the training scans
    identity    SHA-256 of weights and sidecar, and how intensities are normalised: what makes two runs' labels those of one
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
    """Segment a scan, or all below a folder; returns the files written. What an earlier call wrote of the same run and scan is kept.

    run            a finished fine-tuning of the task segmentation
    target         a NIfTI file, or a folder of NIfTI files and DICOM series
    out            a file .nii.gz for one scan, else a folder, in which a scan keeps its path below `target`
    probabilities  also NAME_probabilities.nii.gz, ``[X, Y, Z, K]``, background first
    intensity      mri, ct or none: how to normalise, where the run learnt from scans of several kinds
    force          files that are there are written anew; without it those of another origin are refused, before any is segmented
    check          read headers only, say what would be written, and write nothing

    ConfigError: the run, the target or the outputs are not what they should be. DataError, after all other scans are done:
    some scans were refused. MachineError: nothing can be written.
    """
    predictor = load_run(run, intensity)
    with scans_of(target, out, say) as (asked, refused):
        left = missing(asked, predictor.identity, probabilities, force)
        if len(left) < len(asked):
            say(f"{len(asked) - len(left)} of {len(asked)} scans were segmented by this run before and are kept; {len(left)} to do")
        refuse_unwritable(out.parent if is_volume(out.name) else out, "--out")
        if check:
            return _forecast(predictor, left, refused, probabilities, say)
        written: list[Path] = []
        done = 0
        console = Console(stderr=True)
        cause: Exception | None = None
        with process_group() as device:
            for one in track(left, "segmenting", console=console, disable=not console.is_terminal):
                try:
                    volumes = _segmented(predictor, one, device, probabilities, say)
                except DataError as error:
                    reason = _in_words(error, one, predictor.options)
                except UserError:
                    raise
                except Exception as error:  # of a library or of this program: no other scan is to pay for it
                    reason, cause = f"{one.shown}: cannot be segmented: {_short(error)}; look at this file, and segment it alone", error
                else:
                    written += _write(volumes, one, predictor.identity, done, force)
                    done += 1
                    continue
                refused.append(reason)
                say(reason)
    if refused:
        raise DataError(f"{len(refused)} scans were not segmented, {done} were: {refused[0]}") from cause
    named = ", ".join(f"{value} {name}" for value, name in predictor.classes.items())
    say(f"{len(asked)} scans segmented in {out}: 0 background, {named}")
    return written


def _forecast(
    predictor: Predictor, asked: Sequence[Asked], refused: list[str], probabilities: bool, say: Callable[[str], None]
) -> list[Path]:
    """Say what would be written, by the headers alone. DataError where some of them are of no scan that the network can take."""
    for one in asked:
        try:
            _refuse_channels(predictor, one.path, num_channels(one.path, read_header(one.path).shape, predictor.options["channels"]))
        except DataError as error:
            refused.append(_in_words(error, one, predictor.options))
            say(refused[-1])
            continue
        say(f"{one.name} would become {' and '.join(map(str, one.files(probabilities)))}")
    if refused:
        raise DataError(f"{len(refused)} scans would not be segmented, of {len(asked)}: {refused[0]}")
    say(f"{len(asked)} scans would be segmented; their headers are right, voxels are looked at when it runs; nothing was written")
    return []


def load_run(run: Path, intensity: str | None = None) -> Predictor:
    """The segmentation that a run folder holds. ConfigError where it holds none, or none yet."""
    path = run / WEIGHTS
    if not path.is_file():
        state = read_status(run).get("state") if run.is_dir() else None
        why = f"its run is {state}; let it finish" if state else "it is no run folder of a fine-tuning; give one, as runs/fine"
        raise ConfigError(f"{run}: holds no {WEIGHTS}, {why}")
    sidecar = read_sidecar(path)
    lacking = [name for name in NEEDED if name not in sidecar]
    if lacking:
        raise ConfigError(f"{path.with_suffix('.json')}: lacks {', '.join(lacking)}; copy it from the run folder again")
    described = parse({"task": sidecar["task"], "encoder": sidecar["architecture"]}, _Described, str(path.with_suffix(".json")))
    task = TASKS.build(described.task)
    if not isinstance(task, Segmentation):
        raise ConfigError(f"{run}: was trained for {described.task.name}, and predict writes label maps; give a run of segmentation")
    classes = task.chosen({int(value): name for value, name in sidecar["label_names"].items()}, path.with_suffix(".json"))
    channels = int(sidecar["in_channels"])
    model = Segmenter(build_network(described.encoder, channels, decoder=True), 1 + len(classes))
    try:
        weights = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a whole safetensors file ({error}); fine-tune again, or copy it again") from None
    mismatch = compare(weights, model.state_dict())
    if mismatch.any:
        raise ConfigError(f"{path}: not the network that {path.with_suffix('.json').name} describes: {mismatch.words()}; copy both again")
    model.load_state_dict(weights)
    options = {**sidecar["intensity"], "kind": _kind(run, str(sidecar["intensity"]["kind"]), intensity)}
    spacing, precision = tuple(sidecar["spacing_mm"]), sidecar.get("precision", "auto")
    content = path.read_bytes() + path.with_suffix(".json").read_bytes()
    identity = f"{hashlib.sha256(content).hexdigest()} {options['kind']}"
    return Predictor(model, task, classes, options, triple(sidecar["patch_size"]), channels, spacing, precision, identity)


def _kind(run: Path, trained: str, asked: str | None) -> str:
    kinds = trained.split("+")
    if asked is None and len(kinds) > 1:
        raise ConfigError(f"{run}: learnt from intensities of kinds {trained}; say which these scans are with --intensity {kinds[0]}")
    if asked is not None and asked not in kinds:
        raise ConfigError(f"--intensity = {asked}: {run} learnt from {trained}; give {' or '.join(kinds)}")
    return asked or kinds[0]


def segment(
    predictor: Predictor, path: Path, device: torch.device | None = None, *, keep: bool = False
) -> tuple[np.ndarray, np.ndarray | None, ReadyScan]:
    """Label values ``Int16[X, Y, Z]`` on the grid of a file, with `keep` also probabilities ``Float32[K, X, Y, Z]``, and the scan.

    Raises DataError where the file is no scan that the network can take.
    """
    device = device or torch.device("cpu")
    ready = ready_scan(ScanTask.like(predictor.options, path.name, path))
    _refuse_channels(predictor, path, len(ready.stored))
    model = predictor.model.to(device)
    volume = torch.from_numpy(ready.voxels)
    dtype = autocast_dtype(predictor.precision, device)
    found = predictor.task.probabilities(model, volume, ready.normalisation.fill, predictor.patch_size, device, dtype)
    to_prepared = np.linalg.inv(ready.affine) @ ready.own_affine
    cropped = predictor.options.get("crop", "none") != "none"
    indices, shares = classes_on(ready.image.voxels.shape[1:], found.cpu().numpy(), to_prepared, cropped=cropped, keep=keep)
    values = np.array([0, *predictor.classes], dtype=np.int16)
    return values[indices], shares, ready


def _refuse_channels(predictor: Predictor, path: Path, channels: int) -> None:
    if channels != predictor.num_channels:
        raise DataError(f"{path}: has {channels} channels, the network takes {predictor.num_channels}")


def _segmented(predictor: Predictor, one: Asked, device: torch.device, probabilities: bool, say: Callable[[str], None]) -> list[np.ndarray]:
    """Labels, and with `probabilities` shares ``[X, Y, Z, K]``, on the grid of a scan."""
    labels, shares, ready = segment(predictor, one.path, device, keep=probabilities)
    spacing = np.linalg.norm(ready.affine[:3, :3], axis=0)
    if not np.allclose(spacing, predictor.spacing_mm, rtol=SPACING_TOLERANCE):
        there, trained = (", ".join(f"{v:.3g}" for v in values) for values in (spacing, predictor.spacing_mm))
        say(f"{one.shown}: warning: {there} mm a voxel, the network learnt at {trained}; prepare the training scans with a spacing_mm")
    for warning in ready.warnings:
        say(f"{one.shown}: warning: {warning}")
    kind = np.uint8 if labels.max(initial=0) < 256 else np.int16
    return [labels.astype(kind)] if shares is None else [labels.astype(kind), np.moveaxis(shares, 0, -1)]


def _write(volumes: Sequence[np.ndarray], one: Asked, identity: str, done: int, force: bool) -> list[Path]:
    """The files of a scan that are not there. MachineError where a disk is full, which all scans after it would meet too."""
    files = [(file, voxels) for file, voxels in zip(one.files(len(volumes) > 1), volumes, strict=True) if force or not file.exists()]
    stamp = stamp_of(one, identity)
    try:
        for file, voxels in files:
            _write_nifti(file, voxels, one.path, stamp)
    except OSError as error:
        why = error.strerror or error
        raise MachineError(f"{one.output}: {why}; {done} scans are done. Free some space, or choose another place") from None
    return [file for file, _ in files]


def _in_words(error: DataError, one: Asked, options: Mapping[str, Any]) -> str:
    """What is wrong with a scan; where the remedy is an option of `prepare`, which the run has settled, another remedy."""
    text = str(error).replace(str(one.path), one.shown)
    wrong, *remedy = re.split(r"; |: (?=set )", text, maxsplit=1)
    settled = next((name for name in SETTLED if remedy and re.search(rf"\b{name}\b", remedy[0])), None)
    if settled is None:
        return text
    value = options.get("kind" if settled == "intensity" else settled)
    return f"{wrong}; the run learnt from scans prepared with {settled} = {value}, so this one has to be repaired or left out"


def _short(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__} {error}", 300)


def _write_nifti(file: Path, voxels: np.ndarray, scan: Path, stamp: str) -> None:
    """Voxels with the geometry of a scan's header, and nothing else of it: what else stands there may name a patient."""
    theirs = cast(Any, nibabel.load(scan)).header
    image = (nibabel.Nifti1Image if theirs.sizeof_hdr == 348 else nibabel.Nifti2Image)(voxels, None)
    for name in GEOMETRY:
        image.header[name] = theirs[name]
    image.header["descrip"] = stamp.encode()
    content = image.to_bytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as out:
        out.write(gzip.compress(content, compresslevel=6, mtime=0) if file.name.lower().endswith(".gz") else content)

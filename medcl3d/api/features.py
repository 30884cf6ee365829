"""Features of scans from Python."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from medcl3d.core.errors import DataError
from medcl3d.distributed.precision import Precision, autocast_dtype
from medcl3d.downstream.predict.inputs import reason_of, scans_of
from medcl3d.downstream.pretrained_encoder import PretrainedEncoder, load_encoder
from medcl3d.downstream.scan_features import Extraction, scan_features
from medcl3d.downstream.trained_scan import intensity_kind

Scan = str | Path


@overload
def extract_features(  # type: ignore[overload-overlap]  # a str is a sequence too
    encoder: PretrainedEncoder | Scan,
    scans: Scan,
    dense: bool = ...,
    *,
    layer: int | None = ...,
    overlap: float = ...,
    windows: int = ...,
    intensity: str | None = ...,
    precision: Precision = ...,
    device: torch.device | str | None = ...,
) -> Tensor | dict[str, Tensor]: ...


@overload
def extract_features(
    encoder: PretrainedEncoder | Scan,
    scans: Sequence[Scan],
    dense: bool = ...,
    *,
    layer: int | None = ...,
    overlap: float = ...,
    windows: int = ...,
    intensity: str | None = ...,
    precision: Precision = ...,
    device: torch.device | str | None = ...,
) -> dict[str, Tensor]: ...


def extract_features(
    encoder: PretrainedEncoder | Scan,
    scans: Scan | Sequence[Scan],
    dense: bool = False,
    *,
    layer: int | None = None,
    overlap: float = 0.5,
    windows: int = 4,
    intensity: str | None = None,
    precision: Precision = "auto",
    device: torch.device | str | None = None,
) -> Tensor | dict[str, Tensor]:
    """Features of whole scans; each is prepared as the pretraining scans were: RAS+ axes, spacing, intensity.

        vector = medcl3d.extract_features(encoder, "scan.nii.gz")              # Float32[F]
        volume = medcl3d.extract_features(encoder, "scan.nii.gz", dense=True)  # Float32[C, X, Y, Z]
        vectors = medcl3d.extract_features(encoder, "scans/")                  # a dict: name -> Float32[F]

    encoder    from `medcl3d.load_encoder`, or its run folder
    scans      a NIfTI file; or a list of them, or a folder of NIfTI files and DICOM series, which give a dict
               by path (of a folder: below it)
    dense      a map on each scan's own grid, interpolated linearly through the affines, in place of one
               vector, which is the mean of the pooled features of all windows. It takes 4 C bytes per voxel
    layer      which feature map `dense` takes, 0 being the finest; default: the decoder's, if pretraining
               trained one, else 0
    overlap    share of a window (of the encoder's `patch_size`) that the next one covers too
    windows    crops computed at once
    intensity  mri, ct or none: how to normalise, if the encoder was trained on scans of several kinds
    precision  auto (bfloat16 if the device computes in it), float32, bfloat16
    device     where the encoder is moved to (default: where it is)

    Problems that do not stop it, such as a voxel size that differs from pretraining, are Python warnings.
    DataError: a scan cannot be read, or has another number of channels. ConfigError: an argument is wrong.
    """
    loaded = encoder if isinstance(encoder, PretrainedEncoder) else load_encoder(encoder)
    if device is not None:
        loaded = loaded.to(device)
    kind = intensity_kind(loaded.path, str(loaded.intensity["kind"]), intensity, "intensity")
    extraction = Extraction(dense, layer, overlap, windows, kind)
    dtype = autocast_dtype(precision, next(loaded.parameters()).device)

    def features_of(path: Path) -> Tensor:
        try:
            return scan_features(
                loaded, path, extraction, dtype, note=lambda text: warnings.warn(text, stacklevel=3)
            )[0]
        except DataError as error:
            raise DataError(reason_of(error, loaded.intensity, "encoder")) from error

    with _evaluating(loaded):
        if not isinstance(scans, str | Path):
            return {str(scan): features_of(_path(scan)) for scan in scans}
        if not _path(scans).is_dir():
            return features_of(_path(scans))
        with scans_of(_path(scans), Path("features"), lambda text: warnings.warn(text, stacklevel=2)) as (
            found,
            refused,
        ):
            if refused:
                raise DataError(scans, f"{len(refused)} series cannot be used: {refused[0]}")
            return {one.name: features_of(one.path) for one in found}


def _path(scan: Scan) -> Path:
    return Path(scan).expanduser()


@contextmanager
def _evaluating(encoder: PretrainedEncoder) -> Iterator[None]:
    """Evaluation mode, as dropout and batch norm need it; afterwards the mode from before."""
    training = encoder.training
    encoder.eval()
    try:
        yield
    finally:
        encoder.train(training)

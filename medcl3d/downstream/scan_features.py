"""Features of a whole scan from an encoder that takes crops: one vector, or a map on the scan's own grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import affine_transform
from torch import Tensor, nn

from medcl3d.core.embeddings import Features
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.core.geometry import Triple
from medcl3d.downstream.predict.scan_grid import outside
from medcl3d.downstream.pretrained_encoder import PretrainedEncoder
from medcl3d.downstream.trained_scan import other_spacing, prepared
from medcl3d.downstream.windows import WHOLE_VOXELS, Windows, covering_windows, features_of_windows, mean_maps
from medcl3d.encoders import centre_of
from medcl3d.preprocessing.ready_scan import ReadyScan


@dataclass(frozen=True)
class Extraction:
    """What is computed of each scan.

    dense    a map on the scan's own grid in place of one vector
    layer    the feature map that is taken, by its number (0 is the finest); None: the decoder's, else the
             finest (`dense` only)
    overlap  share of a window that the next one covers too, at least
    windows  crops at once
    kind     how intensities are normalised: mri, ct or none
    """

    dense: bool
    layer: int | None
    overlap: float
    windows: int
    kind: str

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ConfigError("overlap", self.overlap, "is not within [0, 1)", "use 0.5", colon=False)
        if self.windows < 1:
            raise ConfigError("windows", self.windows, "at least one crop is computed at once", "use 4")
        if self.layer is not None and not self.dense:
            problem, remedy = "pooled features come from the coarsest map", "set dense, or leave layer out"
            raise ConfigError("layer", self.layer, problem, remedy)


def scan_features(
    encoder: PretrainedEncoder,
    path: Path,
    extraction: Extraction,
    dtype: torch.dtype | None,
    note: Callable[[str], None] = lambda _: None,
) -> tuple[Tensor, ReadyScan]:
    """Features of one file, prepared as those of pretraining (axes, spacing, intensity), and the scan.

    dtype  as in autocast, None for float32; note: receives warnings about the scan

    Returns ``Float32[F]``, the mean of the pooled features of overlapping windows; with `dense` ``Float32[C,
    X, Y, Z]`` on the file's own grid, interpolated linearly. DataError: the file cannot be read, or is not a
    scan that the encoder takes.
    """
    options = {**encoder.intensity, "kind": extraction.kind}
    ready = prepared(path, options, encoder.in_channels, "encoder")
    differs = other_spacing(ready, encoder.spacing_mm)
    if differs:
        note(f"{path}: voxels of {differs[0]} mm, the encoder was trained at {differs[1]} mm")
    for warning in ready.warnings:
        note(f"{path}: {warning}")
    compute = _dense if extraction.dense else _pooled
    found = compute(encoder, ready, extraction, dtype)
    if not bool(found.isfinite().all()):
        raise DataError(
            path, "its features are not finite", "look at the scan's intensities, or use precision float32"
        )
    return found, ready


def _windowed(
    encoder: PretrainedEncoder,
    ready: ReadyScan,
    windows: Windows,
    extraction: Extraction,
    dtype: torch.dtype | None,
    network: nn.Module,
) -> Iterator[tuple[Triple, Features]]:
    device = next(encoder.parameters()).device
    volume, fill = torch.from_numpy(ready.voxels), ready.normalisation.fill
    size, at_once = encoder.patch_size, extraction.windows
    return features_of_windows(network, volume, fill, windows, size, at_once, device, dtype)


def _pooled(
    encoder: PretrainedEncoder, ready: ReadyScan, extraction: Extraction, dtype: torch.dtype | None
) -> Tensor:
    windows = covering_windows(ready.stored.shape[1:], encoder.patch_size, extraction.overlap, WHOLE_VOXELS)
    total = torch.zeros(encoder.num_features, dtype=torch.float64)
    for _, features in _windowed(encoder, ready, windows, extraction, dtype, encoder.network.encoder):
        total += features.pooled[0].double().cpu()
    return (total / len(windows.starts)).float()


def _dense(
    encoder: PretrainedEncoder, ready: ReadyScan, extraction: Extraction, dtype: torch.dtype | None
) -> Tensor:
    """The map of all windows, whose starts are multiples of its stride, with Gaussian weights."""
    decoded = extraction.layer is None and encoder.network.decoder is not None
    layer = extraction.layer or 0
    if not 0 <= layer < len(encoder.strides):
        raise ConfigError("layer", layer, f"the encoder has maps 0 to {len(encoder.strides) - 1}")
    stride = WHOLE_VOXELS if decoded else encoder.strides[layer]
    windows = covering_windows(ready.stored.shape[1:], encoder.patch_size, extraction.overlap, stride)

    def chosen(features: Features) -> list[tuple[Tensor, Triple]]:
        values = features.decoded if decoded else features.maps[layer]
        assert values is not None
        return [(values, stride)]

    network = encoder.network if decoded else encoder.network.encoder
    found = _windowed(encoder, ready, windows, extraction, dtype, network)
    [mean] = mean_maps(found, chosen, windows, encoder.patch_size)
    to_prepared = np.diag([*map(float, stride), 1.0])
    to_prepared[:3, 3] = np.array(centre_of(encoder.network.encoder, stride)) - np.array(windows.before)
    cropped = encoder.intensity.get("crop", "none") != "none"
    return torch.from_numpy(_on_own_grid(mean.mean().movedim(-1, 0).numpy(), ready, to_prepared, cropped))


def _on_own_grid(values: np.ndarray, ready: ReadyScan, to_prepared: np.ndarray, cropped: bool) -> np.ndarray:
    """``Float32[C, X, Y, Z]``: a map ``[C, d, h, w]``, interpolated linearly at the voxels of the file.

    to_prepared  ``Float64[4, 4]`` voxel of the map -> voxel of the prepared scan

    Beyond the centres of its outermost voxels the map continues unchanged; beyond a scan that was `cropped`
    to the body it is 0.
    """
    shape = ready.image.voxels.shape[1:]
    into_prepared = np.linalg.inv(ready.affine) @ ready.own_affine
    into_map = np.linalg.inv(to_prepared) @ into_prepared
    rounded = np.round(into_map, 6)  # turns of the axes are then exact
    result = np.empty((len(values), *shape), dtype=np.float32)
    for channel, one in zip(result, values, strict=True):
        affine_transform(one, rounded[:3, :3], rounded[:3, 3], output=channel, order=1, mode="nearest")
    if cropped:
        matrix, offset = into_prepared[:3, :3], into_prepared[:3, 3]
        result[:, outside(shape, ready.stored.shape[1:], matrix, offset, tolerance=1e-3)] = 0
    return result

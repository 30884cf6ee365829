"""A pretrained encoder as one module, with what is needed to prepare scans for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn

from medcl3d.config.choices import choice_of
from medcl3d.config.field_types import STRICT
from medcl3d.config.loading import parse
from medcl3d.core.embeddings import Features
from medcl3d.core.errors import ConfigError
from medcl3d.core.geometry import Triple, triple
from medcl3d.downstream.run_weights import RUN, read_sidecar, weights_path
from medcl3d.downstream.transfer import load_weights
from medcl3d.encoders import ENCODERS
from medcl3d.encoders.module import passing
from medcl3d.encoders.network import Network, build_network

NEEDED = ("architecture", "in_channels", "spacing_mm", "patch_size", "intensity")


@validated(frozen=True, kw_only=True, config=STRICT)
class _Described:
    encoder: choice_of(ENCODERS)  # type: ignore[valid-type]


class PretrainedEncoder(nn.Module):
    """Features of crops ``[B, C, D, H, W]`` that are prepared as in pretraining.

    network       encoder, and the decoder if pretraining trained one
    in_channels   C
    spacing_mm    median voxel size of the pretraining scans along right, front and head (RAS+ axes)
    patch_size    voxels of a crop in pretraining; other sizes must be divisible by the coarsest stride
    intensity     how intensities were prepared: `kind` (mri, ct, none) and the options of `medcl3d prepare`
    channels      of each feature map, finest first
    strides       of each feature map, voxels of the crop per voxel of the map
    num_features  width of the pooled features
    sidecar       all of encoder.json
    path          of the weights
    """

    def __init__(self, network: Network, sidecar: dict[str, Any], path: Path):
        super().__init__()
        self.network, self.sidecar, self.path = network, sidecar, path
        self.in_channels = int(sidecar["in_channels"])
        x, y, z = map(float, sidecar["spacing_mm"])
        self.spacing_mm: tuple[float, float, float] = (x, y, z)
        self.patch_size: Triple = triple(sidecar["patch_size"])
        self.intensity: dict[str, Any] = dict(sidecar["intensity"])
        self.channels: tuple[int, ...] = tuple(network.encoder.channels)  # type: ignore[arg-type]
        self.strides: tuple[Triple, ...] = tuple(network.encoder.strides)  # type: ignore[arg-type]
        self.num_features: int = network.num_features

    def forward(self, x: Tensor) -> Features:
        """Pooled features ``[B, num_features]`` and maps ``[B, C_i, D_i, H_i, W_i]``, finest first."""
        features: Features = self.network(x)
        return features


def load_encoder(run: str | Path, encoder: nn.Module | None = None) -> PretrainedEncoder:
    """Load a pretrained encoder, in evaluation mode.

        encoder = medcl3d.load_encoder("runs/pre")
        features = encoder(crops)                      # features.pooled [B, num_features], features.maps

    run      a pretraining's run folder, a folder with encoder.safetensors and encoder.json, or that
             safetensors file
    encoder  for runs whose encoder was passed from Python: a module of the same architecture
             (`medcl3d.as_encoder`), which is copied

    ConfigError: the files are absent, damaged, of a newer version, or do not fit each other.
    """
    folder = Path(run).expanduser()
    if (folder / "model.safetensors").is_file():
        problem = "holds a fine-tuned model, not an encoder"
        remedy = "give the pretraining's run folder (`init` in its config.yaml)"
        raise ConfigError(problem=problem, remedy=remedy, place=folder)
    try:
        path = weights_path(folder)
    except ConfigError as error:  # its field is that of a fine-tuning
        raise ConfigError(problem=error.problem, remedy=RUN if error.remedy else "", place=folder) from None
    sidecar = read_sidecar(path, NEEDED)
    described = parse({"encoder": sidecar["architecture"]}, _Described, str(path.with_suffix(".json")))
    with passing(encoder):
        network = build_network(
            described.encoder, int(sidecar["in_channels"]), decoder=bool(sidecar.get("decoder"))
        )
    load_weights(network, path, "all" if network.decoder is not None else "encoder")
    return PretrainedEncoder(network, sidecar, path).eval()

"""The finished run that an export reads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from medcl3d.core.embeddings import Features
from medcl3d.core.errors import ConfigError, MachineError
from medcl3d.core.geometry import Triple, triple
from medcl3d.core.version import __version__
from medcl3d.datasets.pseudonymise import id_hasher
from medcl3d.downstream.predict.predictor import WEIGHTS as MODEL
from medcl3d.downstream.predict.predictor import load_run
from medcl3d.downstream.pretrained_encoder import load_encoder
from medcl3d.downstream.run_weights import read_sidecar, read_weights, weights_path
from medcl3d.downstream.seen_patients import WITHHELD
from medcl3d.encoders.network import Network

SCHEMA = 1
PUBLIC = ("architecture", "in_channels", "decoder", "axes", "spacing_mm", "patch_size", "precision",
          "intensity", "task", "label_names", "pretraining", "step")  # fmt: skip
"""Entries of a run's sidecar that an export copies. Others name patients, scans, paths or versions."""
HASHED = ("pretraining_patients", "pretraining_content", "training_patients")
COPY_AGAIN = "copy the run folder again"
SEED = 0  # of the crops that exports are measured on


@dataclass(frozen=True)
class Source:
    """A finished pretraining, or a finished fine-tuning.

    run      its folder, or RUN@STEP
    weights  the safetensors file, beside its JSON sidecar
    sidecar  the content of that sidecar, which names patients
    licence  of the weights, as the user gave it
    hashed   also write keyed hashes of patients and of scans
    """

    run: Path
    weights: Path
    sidecar: Mapping[str, Any]
    licence: str = "unknown"
    hashed: bool = False

    @staticmethod
    def of(run: Path, licence: str = "unknown", hashed: bool = False) -> Source:
        """The source in a run folder. ConfigError if the run has not finished, or is an evaluation."""
        weights = run / MODEL if (run / MODEL).is_file() else _of_pretraining(run)
        sidecar = read_sidecar(
            weights, ("architecture", "in_channels", "spacing_mm", "patch_size", "intensity")
        )
        return Source(run, weights, sidecar, licence, hashed)

    @property
    def task(self) -> str:
        """The task of a fine-tuning, "" for a pretraining."""
        return next(iter(self.sidecar["task"])) if self.weights.name == MODEL else ""

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The weights of the file. ConfigError if it is damaged."""
        return read_weights(self.weights, self.sidecar, COPY_AGAIN)

    @property
    def sha256(self) -> str:
        """SHA-256 of the file of weights."""
        return hashlib.sha256(self.weights.read_bytes()).hexdigest()

    @property
    def patch_size(self) -> Triple:
        """Voxels of a crop."""
        return triple(self.sidecar["patch_size"])

    @property
    def in_channels(self) -> int:
        """Channels of a crop."""
        return int(self.sidecar["in_channels"])

    @cached_property
    def model(self) -> nn.Module:
        """The network of a pretraining, or the segmentation network of a fine-tuning, in evaluation mode."""
        if not self.task:
            return load_encoder(self.run).network.eval()
        kind = str(self.sidecar["intensity"]["kind"]).partition("+")[0]  # which does not change the network
        return load_run(self.run, kind).model.eval()

    @property
    def network(self) -> Network:
        """The encoder, and the decoder if it has one."""
        return cast(Network, self.model if isinstance(self.model, Network) else self.model.network)

    @property
    def encoder_name(self) -> str:
        """The registered name of the encoder."""
        return next(iter(self.sidecar["architecture"]))

    @property
    def encoder_fields(self) -> dict[str, Any]:
        """The fields of the encoder in the configuration."""
        return dict(self.sidecar["architecture"][self.encoder_name])

    @property
    def public(self) -> dict[str, Any]:
        """The sidecar of an export: how to use the weights, without patients, scans and paths.

        With `hashed`, also keyed hashes of patients and of scans' contents. The key is in the run folder.
        """
        kept = {name: self.sidecar[name] for name in PUBLIC if name in self.sidecar}
        if self.hashed:
            folder = self.run if self.run.is_dir() else self.run.parent / self.run.name.partition("@")[0]
            hash_id = id_hasher(folder)
            kept["hashed"] = {
                name: sorted(" ".join(map(hash_id, text.split(" "))) for text in self.sidecar[name])
                for name in HASHED
                if isinstance(self.sidecar.get(name), list)  # patients may be unknown
            }
        kept["pretraining_patients"] = WITHHELD
        return {"schema": SCHEMA, **kept, "licence": self.licence, "medcl3d": __version__}

    def crops(self, number: int = 2) -> Tensor:
        """Random crops ``[number, C, D, H, W]``, the same in each call."""
        generator = torch.Generator().manual_seed(SEED)
        return torch.randn((number, self.in_channels, *self.patch_size), generator=generator)

    @torch.no_grad()
    def outputs(self, crops: Tensor) -> dict[str, Tensor]:
        """The outputs of the model by name."""
        return named(self.model(crops))

    def refuse(self, to: str, why: str, remedy: str) -> NoReturn:
        """ConfigError: this run cannot be written in a format."""
        raise ConfigError(problem=f"cannot be exported to {to}: {why}", remedy=remedy, place=self.run)


def _of_pretraining(run: Path) -> Path:
    try:
        return weights_path(run)
    except ConfigError as error:  # its field is that of a fine-tuning
        problem = error.problem.replace(", not the run folder of a pretraining; use one", "")
        remedy = "use the run folder of a finished pretraining or fine-tuning"
        raise ConfigError(problem=problem, remedy=remedy, place=run) from None


def named(found: Features | Tensor) -> dict[str, Tensor]:
    """Outputs by name: `logits`; or `pooled`, `map_0` (the finest), `map_1`, ..., `decoded` if present."""
    if isinstance(found, Tensor):
        return {"logits": found}
    maps = {f"map_{index}": one for index, one in enumerate(found.maps)}
    decoded = {} if found.decoded is None else {"decoded": found.decoded}
    return {"pooled": found.pooled, **maps, **decoded}


class Named(nn.Module):
    """A model with a dict of tensors as output, which files without medcl3d's classes can hold."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, crops: Tensor) -> dict[str, Tensor]:
        """The outputs of crops ``[B, C, D, H, W]`` by name."""
        return named(self.model(crops))


def difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The largest absolute difference of outputs with the same names."""
    return max(float((value - theirs[name]).abs().max()) for name, value in ours.items())


def file_content(tensors: Mapping[str, Tensor]) -> bytes:
    """The content of a safetensors file."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return to_safetensors(whole, metadata={"format": "pt"})


def needs(package: str, to: str) -> MachineError:
    """The error of a format whose package is missing."""
    return MachineError("", f"{to} needs {package}, which is not installed", "pip install 'medcl3d[export]'")


Writer = Callable[[Source, Path], list[str]]
"""Writes the files of a format into an empty folder; returns lines for the user."""

"""A fine-tuned segmentation network, loaded from its run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass as validated
from torch import nn

from medcl3d.config.choices import choice_of
from medcl3d.config.field_types import STRICT
from medcl3d.config.loading import parse
from medcl3d.core.errors import ConfigError
from medcl3d.core.geometry import Triple, triple
from medcl3d.distributed.precision import Precision
from medcl3d.downstream.heads import Segmenter
from medcl3d.downstream.run_weights import WEIGHTS as ENCODER
from medcl3d.downstream.run_weights import read_sidecar, read_weights, unfinished
from medcl3d.downstream.tasks import TASKS, task_of
from medcl3d.downstream.tasks.segmentation import Segmentation
from medcl3d.downstream.trained_scan import identity_of, intensity_kind
from medcl3d.downstream.transfer import mismatch
from medcl3d.encoders import ENCODERS
from medcl3d.encoders.network import build_network

WEIGHTS = "model.safetensors"
NEEDED = ("task", "architecture", "label_names", "in_channels", "intensity", "spacing_mm", "patch_size")


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
    identity    SHA-256 of weights and sidecar, and the intensity normalisation
    """

    model: nn.Module
    task: Segmentation
    classes: dict[int, str]
    options: dict[str, Any]
    patch_size: Triple
    num_channels: int
    spacing_mm: tuple[float, ...]
    precision: Precision = "auto"
    identity: str = ""


def load_run(run: Path, intensity: str | None = None) -> Predictor:
    """Load the segmentation network of a run folder.

    ConfigError if there is none, or the run has not finished.
    """
    path = run / WEIGHTS
    file = path.with_suffix(".json")
    if not path.is_file():
        why = unfinished(run) or "not a run folder of a fine-tuning; use one, for example runs/fine"
        if (run / ENCODER).is_file():
            why = f"it is a pretraining; fine-tune its encoder first: medcl3d finetune CONFIG init={run}"
        raise ConfigError(problem=f"holds no {WEIGHTS}, {why}", place=run)
    sidecar = read_sidecar(path, NEEDED)
    fields = {"task": sidecar["task"], "encoder": sidecar["architecture"]}
    described = parse(fields, _Described, str(file))
    task = task_of(described.task)
    if not isinstance(task, Segmentation):
        problem = f"was trained for {described.task.name}, but predict writes label maps"
        remedy = "use a run of segmentation"
        raise ConfigError(problem=problem, remedy=remedy, place=run)
    classes = task.chosen({int(value): name for value, name in sidecar["label_names"].items()}, file)
    channels = int(sidecar["in_channels"])
    model = Segmenter(build_network(described.encoder, channels, decoder=True), 1 + len(classes))
    weights = read_weights(path, sidecar, "fine-tune again, or copy it again")
    different = mismatch(weights, model.state_dict())
    if different:
        raise ConfigError(
            problem=f"not the network of {file.name}: {different}", remedy="copy both again", place=path
        )
    model.load_state_dict(weights)
    kind = intensity_kind(run, str(sidecar["intensity"]["kind"]), intensity, "--intensity")
    return Predictor(
        model,
        task,
        classes,
        {**sidecar["intensity"], "kind": kind},
        triple(sidecar["patch_size"]),
        channels,
        tuple(sidecar["spacing_mm"]),
        sidecar.get("precision", "auto"),
        identity_of(path, kind),
    )

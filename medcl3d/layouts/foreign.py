"""Weights that another project has published: their field in configurations, and their conversion."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from medcl3d.config.field_types import STRICT
from medcl3d.core.errors import ConfigError
from medcl3d.layouts import LAYOUTS
from medcl3d.layouts.layout import Layout, to_ras
from medcl3d.layouts.weights_file import read_weights_file

UNKNOWN = "unknown"  # patients of a pretraining that is not documented
LayoutName = Literal[
    "anatomix", "ct_fm", "medicalnet", "monai_resnet", "monai_swin_unetr", "nnunet", "openmind"
]
Patients = Annotated[tuple[str, ...], Field(min_length=1)]


@dataclass(frozen=True, config=STRICT)
class ForeignWeights:
    """Weights that another project has published, in a file that was downloaded.

    weights  the file: .pt, .pth, .ckpt or .safetensors
    layout   how the file names its tensors: the project or the network
    saw      which patients of these scans were used to train them: none; a list of patient ids, none of which
             may be tested; or unknown, which every report states
    """

    weights: Path
    layout: LayoutName
    saw: Literal["unknown", "none"] | Patients

    def __str__(self) -> str:
        return f"{self.weights} ({self.layout})"


@plain_dataclass(frozen=True)
class ForeignEncoder:
    """The encoder of a file: tensors by the names of an encoder here, and what is known about them.

    sidecar  as encoder.json of a pretraining, as far as it applies
    notes    sentences for the user
    """

    weights: dict[str, Tensor]
    sidecar: dict[str, Any]
    notes: tuple[str, ...]


def foreign_encoder(given: ForeignWeights) -> ForeignEncoder:
    """Read and convert a file. ConfigError: it is missing, damaged, or of another network."""
    layout, path = LAYOUTS[given.layout], given.weights.expanduser()
    try:
        content = path.read_bytes()
    except OSError as error:
        remedy = f"download it; layout {given.layout} is {layout.about}"
        raise ConfigError("init.weights", path, error.strerror or str(error), remedy) from None
    file = read_weights_file(content, path)
    file = replace(file, tensors={name: _in_ras(tensor, layout) for name, tensor in file.tensors.items()})
    try:
        found = layout.convert(file)
    except ConfigError as error:
        others = f"or another layout than {given.layout}"
        raise ConfigError(problem=error.problem, remedy=f"{error.remedy}, {others}", place=path) from None
    saw = () if given.saw == "none" else given.saw
    sidecar = {
        "architecture": found.encoder,
        "in_channels": found.in_channels,
        "decoder": False,
        "axes": layout.axes or UNKNOWN,
        "spacing_mm": layout.spacing_mm and list(layout.spacing_mm),
        "intensity": dict(layout.intensity),
        "pretraining_patients": UNKNOWN if saw == UNKNOWN else list(saw),
        "weights": path.name,
        "weights_sha256": hashlib.sha256(content).hexdigest(),
        "layout": given.layout,
        "licence": layout.licence,
        "source": layout.source,
    }
    return ForeignEncoder(found.weights, sidecar, (*_left_out(path, file.tensors, found.used), *found.notes))


def _in_ras(tensor: Tensor, layout: Layout) -> Tensor:
    return to_ras(tensor, layout.axes) if tensor.ndim == 5 else tensor


def _left_out(path: Path, tensors: Mapping[str, Tensor], used: frozenset[str]) -> tuple[str, ...]:
    """A sentence on tensors that are not of the encoder, by the first parts of their names."""
    rest = [name for name in tensors if name not in used]
    if not rest:
        return ()
    parts = sorted({name.partition(".")[0] for name in rest})
    shown = ", ".join(parts[:6]) + (", ..." if len(parts) > 6 else "")
    return (
        f"{path}: {len(rest)} of {len(tensors)} tensors are not of the encoder and are left out: {shown}",
    )

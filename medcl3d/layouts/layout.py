"""A layout: how published weights name the tensors of a network, and how its scans were prepared."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from medcl3d.core.errors import ConfigError

State = dict[str, Tensor]


@dataclass(frozen=True)
class WeightsFile:
    """The content of a file: tensors by name without the prefixes of wrappers, and all else that it holds."""

    tensors: State
    others: Mapping[str, Any]


@dataclass(frozen=True)
class Converted:
    """An encoder of a file under the names of this package.

    encoder      its configuration, as in YAML: ``{name: {field: value}}``
    in_channels  channels of its input
    weights      tensors by the names of the encoder
    used         names of tensors of the file that `weights` contains
    notes        sentences on differences from the published network
    """

    encoder: dict[str, dict[str, Any]]
    in_channels: int
    weights: State
    used: frozenset[str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """One layout of published weights.

    about        the networks and where their weights are published
    encoder      name of the encoder that they become
    source       the paper
    licence      of the published weights; "unknown" if a file of this layout may come from anyone
    axes         orientation of the arrays in training, as RAS: the first axis points right. Kernels are
                 reordered to fit scans in RAS order. "" if unknown: they are left as they are
    spacing_mm   voxel size of the training scans along right, front and head; None if they varied
    intensity    options of `medcl3d prepare` that give the network's intensities; {} if unknown
    convert      turns the tensors of a file, whose kernels are in RAS order by now, into those of an encoder;
                 ConfigError if they are others
    """

    about: str
    encoder: str
    source: str
    licence: str
    convert: Callable[[WeightsFile], Converted]
    axes: str = "RAS"
    spacing_mm: tuple[float, float, float] | None = None
    intensity: Mapping[str, Any] = field(default_factory=dict)

    def prepare_options(self) -> list[str]:
        """Options of `medcl3d prepare`, as on a command line, for scans as the weights were trained on."""
        named = {"intensity" if name == "kind" else name: value for name, value in self.intensity.items()}
        if self.spacing_mm is not None:
            named["spacing_mm"] = list(self.spacing_mm)
        return [f"{name}={str(value).replace(' ', '')}" for name, value in named.items()]

    def explained(self, name: str) -> str:
        """All that is known, for a person."""
        lines = {
            "becomes": f"encoder {self.encoder}",
            "axes": self.axes or "unknown",
            "prepare with": " ".join(self.prepare_options()) or "unknown",
            "licence": self.licence,
            "source": self.source,
            "use": f"init: {{weights: FILE, layout: {name}, saw: unknown}}",
        }
        return "\n".join(
            [f"{name}: {self.about}", "", *(f"  {key:<13}{text}" for key, text in lines.items())]
        )


def needed(file: Mapping[str, Tensor], name: str, network: str) -> Tensor:
    """A tensor of a file. ConfigError if it is absent, so that the file holds another network."""
    if name in file:
        return file[name]
    some = ", ".join(sorted(file)[:5])
    problem = f"holds no tensor {name}, which {network} has; it begins with {some or 'nothing'}"
    raise ConfigError(problem=problem, remedy="use the layout of its network")


def count(names: Iterable[str], pattern: str) -> int:
    """One more than the largest number that the group of a pattern matches at the start of a name; else 0."""
    numbers = [int(found.group(1)) for name in names if (found := re.match(pattern, name))]
    return max(numbers, default=-1) + 1


def part_of(file: Mapping[str, Tensor], prefix: str) -> State:
    """The tensors below a prefix, without it."""
    return {name.removeprefix(prefix): one for name, one in file.items() if name.startswith(prefix)}


def to_ras(kernel: Tensor, axes: str) -> Tensor:
    """A kernel ``[O, I, k, k, k]`` for arrays in another orientation, as SPL, for arrays in RAS order.

    A network with the new kernels computes the maps of the reoriented scan, reoriented back, except that an
    axis that is flipped and then strided by a kernel of odd size is sampled one voxel further on.
    """
    if axes in ("RAS", ""):
        return kernel
    pairs = ("RL", "AP", "SI")
    order = [next(i for i, letter in enumerate(axes) if letter in pair) for pair in pairs]
    flipped = [axis for axis, pair in enumerate(pairs) if pair[1] in axes]
    moved = kernel.permute(0, 1, *(2 + i for i in order))
    return moved.flip([2 + axis for axis in flipped]).contiguous() if flipped else moved.contiguous()

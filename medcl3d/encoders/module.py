"""Any network that returns feature maps as an encoder: from Python, or by its import path."""

from __future__ import annotations

import copy
import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import packages_distributions
from itertools import pairwise
from typing import Annotated, Any, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from medcl3d.config.field_types import Choice, PositiveInt, Size
from medcl3d.core.embeddings import Features
from medcl3d.core.errors import ConfigError, Word
from medcl3d.core.geometry import Triple
from medcl3d.encoders import ENCODERS
from medcl3d.encoders.blocks import global_average

Strides = Annotated[tuple[PositiveInt | Size, ...], Field(min_length=1)]
Channels = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

_passed: ContextVar[nn.Module | None] = ContextVar("passed", default=None)


@ENCODERS.register("module")
class ModuleEncoder(nn.Module):
    """A network of an installed package, as of MONAI, that returns one feature map or several.

    path         `package.module:Class`, a `torch.nn.Module` of a package that is installed. Importing a
                 package runs its code, as ``import`` in Python does; nothing else is run: other objects than
                 module classes are refused
    arguments    of its constructor, by name; its number of input channels is among them
    attribute    the part of it that is called and trained, as `features` of MONAI's DenseNet (default: all of
                 it)
    channels     of each map that it returns, finest first; fewer than it returns: the first ones
    strides      of each map, cumulative, one number or three; crops are divisible by the coarsest
    from_python  the module was passed by `medcl3d.as_encoder`; `path` and `arguments` only record its class

    Its output is one map ``[B, C, D, H, W]``, or a list, tuple or dict of them, finest first. The coarsest
    map is averaged to give the pooled features. ConfigError: `path` is not importable or not a module, or its
    maps differ from `channels` and `strides`.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        path: str,
        channels: Channels,
        strides: Strides,
        arguments: dict[str, Any] | None = None,
        attribute: str | None = None,
        from_python: bool = False,
    ):
        super().__init__()
        self.name = f"encoder.module: path = {path}"
        self.path, self.attribute, self.from_python = path, attribute, from_python
        self.channels: tuple[int, ...] = tuple(channels)
        self.strides: tuple[Triple, ...] = tuple((s, s, s) if isinstance(s, int) else s for s in strides)
        self.num_features = self.channels[-1]
        _refuse_unordered(self.channels, self.strides)
        # Not `module`: loading takes that name off, as a prefix of DistributedDataParallel.
        if from_python:
            passed = _passed.get()
            if passed is None:
                problem = "this encoder was passed from Python"
                remedy = "pass it again, as encoder=medcl3d.as_encoder(...)"
                raise ConfigError(problem=problem, remedy=remedy, place=self.name)
            self.wrapped: nn.Module = copy.deepcopy(passed)
        else:
            self.wrapped = _part(_constructed(path, arguments or {}), attribute, self.name)

    @property
    def embeds_patches(self) -> bool:
        """Whether the module declares that a voxel of its maps is centred on the block that it covers."""
        return bool(getattr(self.wrapped, "embeds_patches", False))

    @property
    def choice(self) -> Choice:
        """How a configuration names an encoder that was passed from Python."""
        fields = {name: getattr(self, name) for name in ("path", "channels", "strides", "attribute")}
        return Choice("module", {**fields, "arguments": None, "from_python": True})

    def forward(self, x: Float[Tensor, "B C D H W"]) -> Features:
        """Features of ``[B, C, D, H, W]``: pooled ``[B, num_features]``, maps finest first."""
        maps = self._maps(x)
        return Features(global_average(maps[-1]), maps)

    def _maps(self, x: Float[Tensor, "B C D H W"]) -> tuple[Float[Tensor, "B _ _ _ _"], ...]:
        try:
            found = self.wrapped(x)
        except (RuntimeError, ValueError, TypeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            problem = f"it does not take crops of shape {tuple(x.shape)}: {_line(error)}"
            raise ConfigError(problem=problem, remedy="correct its arguments", place=self.name) from error
        if isinstance(found, Tensor):
            found = (found,)
        elif isinstance(found, Mapping):
            found = tuple(found.values())
        elif isinstance(found, Features):
            found = found.maps
        if not isinstance(found, tuple | list) or not all(isinstance(one, Tensor) for one in found):
            problem = f"it returns a {type(found).__name__}, not feature maps"
            raise ConfigError(problem=problem, remedy="name a part of it with attribute", place=self.name)
        shapes = [tuple(one.shape[1:]) for one in found]
        declared = zip(self.channels, self.strides, strict=True)
        wanted = [(c, *(n // s for n, s in zip(x.shape[2:], stride, strict=True))) for c, stride in declared]
        if shapes[: len(wanted)] != wanted:
            problem = f"of crops {tuple(x.shape)} it makes maps of shapes {shapes}, but channels and strides "
            problem += f"declare {wanted}, finest first"
            raise ConfigError(problem=problem, remedy="correct them", place=self.name)
        return tuple(found[: len(wanted)])


def as_encoder(
    module: nn.Module,
    *,
    channels: int | Sequence[int],
    strides: int | Sequence[int | Sequence[int]],
    attribute: str | None = None,
) -> ModuleEncoder:
    """Wrap any module that returns a feature map, or several finest first, as an encoder.

        densenet = monai.networks.nets.DenseNet121(spatial_dims=3, in_channels=1, out_channels=1)
        encoder = medcl3d.as_encoder(densenet, attribute="features", channels=1024, strides=32)
        run = medcl3d.pretrain("pretrain/mine", encoder=encoder, out_dir="runs/densenet")
        trained = medcl3d.load_encoder("runs/densenet", encoder=encoder)

    module     called with crops ``[B, C, D, H, W]``; it returns one map, or a list, tuple or dict of maps
    channels   of each map
    strides    of each map, cumulative: voxels of the crop per voxel of the map, one number or one per axis
    attribute  the part of the module that is called and trained (default: all of it)

    Voxel i of a map is taken to be centred on voxel i times the stride of the crop, as after strided
    convolutions with padding. If it is centred on the block that it covers, as after poolings and patch
    embeddings, set ``embeds_patches = True`` on the module (or on the part that `attribute` names).

    Runs copy the module before they train it, so it is unchanged. They start from its weights, whatever their
    `seed`. In YAML, name the class instead, as
    ``encoder: {module: {path: "monai.networks.nets:DenseNet121", attribute: features, ...}}``.
    ConfigError: channels and strides do not fit each other, or the module has no such attribute.
    """
    if not isinstance(module, nn.Module):
        problem = f"a {type(module).__name__} is not a torch.nn.Module"
        raise ConfigError(problem=problem, remedy="construct the network first", place="as_encoder")
    part = _part(module, attribute, "as_encoder")
    each = [channels] if isinstance(channels, int) else list(channels)
    steps = [strides] if isinstance(strides, int) else list(strides)
    with passing(part):
        encoder = ModuleEncoder(
            0,
            path=f"{type(module).__module__}:{type(module).__qualname__}",
            channels=tuple(each),
            strides=tuple(one if isinstance(one, int) else cast(Triple, tuple(one)) for one in steps),
            attribute=attribute,
            from_python=True,
        )
    encoder.wrapped = part
    return encoder


@contextmanager
def passing(module: nn.Module | None) -> Iterator[None]:
    """Let configurations with `from_python` build copies of a module inside the block."""
    token = _passed.set(module.wrapped if isinstance(module, ModuleEncoder) else module)
    try:
        yield
    finally:
        _passed.reset(token)


def _constructed(path: str, arguments: Mapping[str, Any]) -> nn.Module:
    """An object of the module class at an import path. ConfigError."""
    name = f"encoder.module: path = {path}"
    if not IMPORT_PATH.fullmatch(path):
        remedy = "write package.module:Class, as monai.networks.nets:DenseNet121"
        raise ConfigError(problem="not an import path", remedy=remedy, place=name)
    location, _, attribute = path.partition(":")
    top = location.partition(".")[0]
    if top not in packages_distributions():
        problem = f"{top} is not part of an installed package"
        remedy = "install it with pip, or pass the module with as_encoder"
        raise ConfigError(problem=problem, remedy=remedy, place=name)
    try:
        module = importlib.import_module(location)
    except Exception as error:
        problem = f"{location} cannot be imported: {type(error).__name__}: {_line(error)}"
        raise ConfigError(problem=problem, remedy="correct the path", place=name) from None
    constructor = getattr(module, attribute, None)
    if not (isinstance(constructor, type) and issubclass(constructor, nn.Module)):
        problem = f"{location} has no torch.nn.Module class {attribute}"
        raise ConfigError(problem=problem, remedy="only such classes may be named", place=name)
    try:
        return constructor(**arguments)
    except Exception as error:
        problem = f"{attribute} refuses its arguments: {_line(error)}"
        raise ConfigError(problem=problem, remedy="correct them", place=name) from error


def _line(error: Exception) -> str:
    """The message of an exception as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


def _part(module: nn.Module, attribute: str | None, name: str) -> nn.Module:
    """The submodule of a dotted name, or all of it. ConfigError: it has none of this name."""
    if attribute is None:
        return module
    try:
        return module.get_submodule(attribute)
    except AttributeError:
        parts = ", ".join(child for child, _ in module.named_children())
        problem, remedy = f"{type(module).__name__} has no such part", f"its parts are {parts}"
        raise ConfigError("attribute", Word(attribute), problem, remedy, place=name) from None


def _refuse_unordered(channels: Sequence[int], strides: Sequence[Triple]) -> None:
    if len(channels) != len(strides):
        problem = f"channels has {len(channels)} entries and strides {len(strides)}"
        raise ConfigError(problem=problem, remedy="give one of each per map")
    for finer, coarser in pairwise(strides):
        if any(b % a for a, b in zip(finer, coarser, strict=True)):
            problem = "each must be a multiple of the one before"
            raise ConfigError("strides", [list(s) for s in strides], problem, "list maps finest first")

"""Registered components validate their fields in Python exactly as in YAML."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, Literal, get_type_hints

import numpy as np
import pytest
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import nn

from medcl3d.config.choices import choice_of
from medcl3d.config.field_types import STRICT, Choice, PositiveInt
from medcl3d.config.kinds import KINDS
from medcl3d.config.loading import load
from medcl3d.config.registry import Registry
from medcl3d.core.errors import ConfigError
from medcl3d.core.relation import Relation
from medcl3d.encoders.blocks import act_layer, norm_layer
from medcl3d.encoders.network import Network, build_network
from medcl3d.encoders.resnet3d import ResNet3d
from medcl3d.encoders.unet3d import UNet3d
from medcl3d.losses.contrastive import Tile, contrastive_sum
from medcl3d.objectives.dense import Dense
from medcl3d.objectives.projector import Projector
from medcl3d.objectives.simclr import SimCLR
from medcl3d.pairs import PAIRS
from medcl3d.pairs.class_labels import ClassLabels
from medcl3d.pairs.hard_negatives import HardNegatives
from medcl3d.pairs.metadata_similarity import similarity_of
from medcl3d.pairs.overlapping_crops import OverlappingCrops
from medcl3d.pairs.same_patient import SamePatient
from medcl3d.views.recipes import mri

REGISTRIES: dict[str, Registry] = {kind: resolve_name(place) for kind, place in KINDS.items()}
NEEDED: dict[str, Any] = {
    "pattern": "{patient}.nii.gz",
    "parts": ["augmented_views", "overlapping_crops"],
    "inner": "overlapping_crops",
    "columns": {"age": 5.0},
    "targets": ["a"],
    "transforms": [{"RandomNoise": {}}],
    "path": "torch.nn:Conv3d",
    "channels": [4],
    "strides": [2],
}


def forms(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [form for option in spec["anyOf"] for form in forms(option)] if "anyOf" in spec else [spec]


def wrong_values(spec: Mapping[str, Any]) -> Iterator[Any]:
    """Values that a JSON Schema forbids, one for each of its constraints."""
    allowed = forms(spec)
    for form in allowed:
        if "minimum" in form:
            yield form["minimum"] - 1
        if "exclusiveMinimum" in form:
            yield form["exclusiveMinimum"]
        if "maximum" in form:
            yield form["maximum"] + 1
        if "exclusiveMaximum" in form:
            yield form["exclusiveMaximum"]
        if form.get("type") == "array":
            items = form.get("prefixItems") or [form["items"]]
            yield from ([value] * len(items) for value in wrong_values(items[0]))
    if not any(
        form.get("type") == "string" and "enum" not in form and "const" not in form for form in allowed
    ):
        yield "no_such_word"
    else:
        yield 7


CASES = [
    pytest.param(REGISTRIES[kind], name, field, value, id=f"{kind}-{name}-{field}-{value}")
    for kind, registry in REGISTRIES.items()
    for name in registry.names()
    for field, spec in registry.schema(name).json_schema().get("properties", {}).items()
    for value in wrong_values(spec)
]


def called(registry: Registry, name: str) -> Callable[..., Any]:
    """The constructor with None as positional arguments, which are not used before the fields are
    validated.
    """
    constructor = registry.get(name)
    places = [p for p in inspect.signature(constructor).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    return lambda **fields: constructor(*[None] * len(places), **fields)


@functools.cache
def config_of(registry: Registry) -> Any:
    return validated(config=STRICT)(make_dataclass("Config", [("it", choice_of(registry))]))


def message_for_a_file(registry: Registry, name: str, fields: Mapping[str, Any], path: Path) -> str:
    """The message of `load` for the same fields in a file, without the place."""
    config = config_of(registry)
    path.write_text(json.dumps({"it": {name: dict(fields)}}), encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load(path, [], config)
    return str(error.value).removeprefix(f"{path}:1: it.{name}.")


def test_there_is_a_case_for_every_field() -> None:
    fields = sum(
        len(r.schema(n).json_schema().get("properties", {})) for r in REGISTRIES.values() for n in r.names()
    )
    assert len({tuple(str(case.id).split("-")[:3]) for case in CASES}) == fields > 150


@pytest.mark.parametrize(("registry", "name", "field", "value"), CASES)
def test_a_wrong_value_fails_in_python_as_in_yaml(
    registry: Registry, name: str, field: str, value: Any, tmp_path: Path
) -> None:
    required = registry.schema(name).json_schema().get("required", [])
    fields = {**{key: NEEDED[key] for key in required}, field: value}
    with pytest.raises(ConfigError) as error:
        called(registry, name)(**fields)
    message = str(error.value)
    assert message.startswith(f"{name}: {field}")
    first, _, _ = message.removeprefix(f"{name}: ").partition(
        "; also "
    )  # a choice in a file reports its first mistake only
    assert first == message_for_a_file(registry, name, fields, tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ResNet3d(1, norm="grup"),
            "resnet3d: norm = 'grup': input should be 'group', 'batch' or 'instance'",
        ),  # type: ignore[arg-type]
        (
            lambda: OverlappingCrops(min_iou=3),
            "overlapping_crops: min_iou = 3: input should be less than or equal to 1",
        ),
        (
            lambda: OverlappingCrops(min_iou=float("nan")),
            "overlapping_crops: min_iou = nan: not a finite number; write one",
        ),
        (
            lambda: OverlappingCrops(min_iou=object()),
            "overlapping_crops: min_iou: an object of type object is not a field value",
        ),  # type: ignore[arg-type]
        (
            lambda: SamePatient(position="mached"),
            "same_patient: position = 'mached': input should be 'matched' or 'free'",
        ),  # type: ignore[arg-type]
        (lambda: replace(OverlappingCrops(), max_iou=3), "overlapping_crops: max_iou = 3: "),
        (
            lambda: HardNegatives(inner={"same_patient": {"position": "x"}}),
            "hard_negatives: inner.same_patient.position = 'x': ",
        ),
        (lambda: UNet3d(in_channels=1, act="rleu"), "unet3d: act = 'rleu': "),  # type: ignore[arg-type]
        (lambda: mri(blur_unit="cm"), "mri: blur_unit = 'cm': "),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert str(error.value).startswith(message)


def similarities(combine: Any, on_missing: Any) -> Any:
    keys: Any = type("K", (), {"column": staticmethod(lambda name: torch.zeros(2, dtype=torch.float64))})
    return similarity_of(keys, keys, {"age": 1.0}, combine, on_missing)


def loss(**fields: Any) -> Any:
    z = torch.eye(4)
    return contrastive_sum(
        z, z, lambda rows, _: Tile(Relation(torch.zeros(4, 4)[rows], torch.ones(4, 4)[rows])), 0.1, **fields
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: loss(denominator="onw"),
            "denominator = 'onw': no such choice; did you mean 'own'?; choose from all, own",
        ),
        (lambda: Projector(4, 4, 4, 1, "lyer"), "norm = 'lyer': no such choice; did you mean 'layer'?"),  # type: ignore[arg-type]
        (lambda: norm_layer("grup", 8), "norm = 'grup': no such choice; did you mean 'group'?"),  # type: ignore[arg-type]
        (lambda: act_layer("rleu"), "act = 'rleu': no such choice; did you mean 'relu'?"),  # type: ignore[arg-type]
        (
            lambda: similarities("prodct", "ignore"),
            "combine = 'prodct': no such choice; did you mean 'product'?",
        ),
        (
            lambda: similarities("mean", "ignor"),
            "on_missing = 'ignor': no such choice; did you mean 'ignore'?",
        ),
    ],
)
def test_a_function_refuses_an_unknown_choice(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        call()
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("simclr", lambda network: SimCLR(network, decoupled=True, denominator="own")),
        ("dense", lambda network: Dense(network, decoupled=True, denominator="own")),
        ("contrastive loss", lambda _: loss(decoupled=True, denominator="own")),
    ],
)
def test_two_denominators_at_once_are_refused_by_both_names(
    name: str, call: Callable[[Network], Any]
) -> None:
    network = build_network(Choice("unet3d", {"channels": (4, 4), "strides": (1, 2)}), 1, decoder=True)
    with pytest.raises(
        ConfigError, match=rf"^{name}: decoupled = True and denominator = 'own' are two denominators"
    ):
        call(network)


def test_numpy_values_and_names_alone_are_accepted_as_in_yaml() -> None:
    strategy = OverlappingCrops(min_iou=0, num_views=np.int64(3))  # type: ignore[arg-type]
    assert (strategy.min_iou, strategy.num_views, type(strategy.num_views)) == (0.0, 3, int)
    filled = Choice(
        "overlapping_crops",
        {"min_iou": 0.3, "max_iou": 0.8, "num_views": 2, "same_scan": "ignore", "samples_per_scan": 1},
    )
    assert (
        HardNegatives(inner="overlapping_crops").inner
        == HardNegatives(inner=Choice("overlapping_crops")).inner
        == filled
    )


def test_registered_classes_and_functions_keep_their_behaviour() -> None:
    fields = list(inspect.signature(OverlappingCrops).parameters)
    assert fields == ["min_iou", "max_iou", "num_views", "same_scan", "samples_per_scan"]
    assert list(inspect.signature(ResNet3d).parameters)[:3] == ["in_channels", "depth", "norm"]
    assert mri.__name__ == "mri" and "blur_unit" in get_type_hints(mri)
    strategy = ClassLabels(column="age")
    assert pickle.loads(pickle.dumps(strategy)) == copy.deepcopy(strategy) == replace(strategy) == strategy
    assert pickle.loads(pickle.dumps(mri)) is mri and pickle.loads(pickle.dumps(SimCLR)) is SimCLR
    encoder = ResNet3d(1, depth=10, width=0.05)
    torch.testing.assert_close(
        copy.deepcopy(encoder).conv1.weight, pickle.loads(pickle.dumps(encoder)).conv1.weight
    )


def test_a_component_is_built_without_importing_its_package() -> None:
    registry = Registry("letter", "no_such_package")

    @registry.register("a")
    @dataclass(frozen=True, kw_only=True)
    class A:
        n: PositiveInt = 1

    assert A(n=2).n == registry.build(Choice("a", {"n": 2})).n == 2
    with pytest.raises(ConfigError, match=r"^a: n = 0: "):
        A(n=0)


def test_subclasses_validate_inherited_and_own_fields() -> None:
    registry = Registry("letter", "no_such_package")

    @registry.register("a")
    class A(nn.Module):
        def __init__(self, width: int, *, kind: Literal["x", "y"] = "x"):
            super().__init__()
            self.width, self.kind = width, kind

    class Unregistered(A):
        def __init__(self, kind: str, more: str):
            super().__init__(3, kind=kind)  # type: ignore[arg-type]
            self.more = more

    @registry.register("b")
    class B(A):
        def __init__(self, width: int, *, share: Annotated[float, Field(le=1)] = 0.5):
            super().__init__(width, kind="y")
            self.share = share

    assert (Unregistered("y", "z").kind, B(width=4).width, B(4, share=1).share) == ("y", 4, 1.0)
    with pytest.raises(ConfigError, match=r"^a: kind = 'z': "):
        Unregistered("z", "")
    with pytest.raises(ConfigError, match=r"^b: share = 2: "):
        B(4, share=2)


def test_strategies_do_not_validate_again_for_every_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.pairs.collections import make_collection

    scans, rng = make_collection(0, 4), np.random.default_rng(0)
    for name in ("body_position", "multi_crop", "physical_overlap", "voxel_correspondence"):
        strategy = PAIRS.build(Choice(name, {"local_size": (4, 4, 4)} if name == "multi_crop" else {}))
        with monkeypatch.context() as patch:
            patch.setattr("medcl3d.config.registry.parse_fields", None)
            strategy.sample(scans, int(strategy.anchors(scans).ids[0]), rng)


def test_an_unknown_argument_is_refused() -> None:
    """In a process of its own, since the check of shapes refuses what is not in a constructor's signature."""
    script = "from medcl3d.pairs.overlapping_crops import OverlappingCrops; OverlappingCrops(min_ious=0.1)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    expected = "overlapping_crops: min_ious = 0.1: unknown key; did you mean 'min_iou'?"
    assert done.returncode == 1 and expected in done.stderr.splitlines()[-1]

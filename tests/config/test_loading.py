"""Strict configurations, and errors with line and remedy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from pydantic.dataclasses import dataclass as config_dataclass

from medcl3d.config.choices import choice_in_list, choice_of
from medcl3d.config.field_types import STRICT, Choice, Fraction, NonNegativeInt, Positive, Size
from medcl3d.config.loading import load, locate, parse
from medcl3d.config.plain import Difference, differences, listed, plain
from medcl3d.config.registry import Registry
from medcl3d.core.errors import ConfigError, DataError, UserError

PARTS = Registry("part", "medcl3d.losses")  # a package without components of this kind


@PARTS.register("cube")
@dataclass(frozen=True, kw_only=True)
class Cube:
    """A component with fields."""

    edge: Positive = 1.0
    share: Fraction = 0.5
    size: Size = (1, 2, 3)


@config_dataclass(frozen=True, kw_only=True, config=STRICT)
class Inner:
    root: Path
    patch_size: Size = (8, 8, 8)


@config_dataclass(frozen=True, kw_only=True, config=STRICT)
class Outer:
    data: Inner
    shape: choice_of(PARTS)  # type: ignore[valid-type]
    lr: Positive = 1.0
    name: str | None = None
    enabled: bool = False
    seed: NonNegativeInt = 0


GOOD = "data:\n  root: here\n  patch_size: [4, 5, 6]\nshape:\n  cube: {edge: 2}\nlr: 1e-4\n"


# Ten aliases of ten aliases of ...: two hundred bytes that would expand to ten thousand million values.
BOMB = "a0: &a0 1\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 11))


def read(tmp_path: Path, text: str, *overrides: str) -> Outer:
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    return load(path, overrides, Outer)


def test_a_good_file(tmp_path: Path) -> None:
    config = read(tmp_path, GOOD)
    assert config.data == Inner(root=Path("here"), patch_size=(4, 5, 6))
    assert config.lr == 1e-4 and config.shape.fields == {"edge": 2.0, "share": 0.5, "size": (1, 2, 3)}
    assert PARTS.build(config.shape) == Cube(edge=2.0)


def test_a_name_alone_has_the_defaults(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD.replace("\n  cube: {edge: 2}", " cube")).shape == Choice(
        "cube", {"edge": 1.0, "share": 0.5, "size": (1, 2, 3)}
    )


def test_overrides_set_fields_of_any_depth(tmp_path: Path) -> None:
    config = read(tmp_path, GOOD, "shape.cube.share=0.25", "lr=3", "data.patch_size=[1, 1, 1]", "name=no")
    assert (config.shape.fields["share"], config.lr, config.data.patch_size, config.name) == (
        0.25,
        3.0,
        (1, 1, 1),
        "no",
    )
    assert (
        read(tmp_path, GOOD.replace("\n  cube: {edge: 2}", " cube"), "shape.cube.edge=3").shape.fields["edge"]
        == 3.0
    )


def test_an_override_that_is_not_yaml_is_text_and_types_are_still_strict(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD, "name={patient}/*_{modality}.nii.gz").name == "{patient}/*_{modality}.nii.gz"
    with pytest.raises(ConfigError, match=r"command line: data.patch_size = '\[1, 1': "):
        read(tmp_path, GOOD, "data.patch_size=[1, 1")


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (GOOD + "sed: 1\n", (), r"a.yaml:7: sed = 1: unknown key; did you mean 'seed'\? \(known keys: data"),
        (
            GOOD.replace("root", "rot"),
            (),
            r"a.yaml:2: data.rot = 'here': unknown key; did you mean 'root'\? \(known keys: root, "
            r"patch_size\)$",
        ),
        (GOOD.replace("shape:", "shap:"), (), r"a.yaml:4: shap = .*: unknown key; did you mean 'shape'\?"),
        (
            GOOD.replace("\n  cube: {edge: 2}", ""),
            (),
            r"a.yaml:4: shape: one part is required, as `name` or .*; choose from cube",
        ),
        (
            GOOD.replace("[4, 5, 6]", "4"),
            (),
            r"a.yaml:3: data.patch_size = 4: expected: 3 whole numbers >= 1; write \[4, 4, 4\]$",
        ),
        (
            GOOD.replace("1e-4", "-1") + "sed: 1\n",
            ("seed=x",),
            r"a.yaml:7: sed = 1: .*; also .*a.yaml:6: lr = -1: .*; also command line: seed = 'x'",
        ),
        (
            GOOD.replace("edge: 2", "egde: 2"),
            (),
            r"a.yaml:5: shape.cube.egde = 2: unknown key; did you mean 'edge'",
        ),
        (GOOD.replace("edge: 2", "edge: -2"), (), r"a.yaml:5: shape.cube.edge = -2: .*greater than 0"),
        (
            GOOD.replace("cube", "cubo"),
            (),
            r"a.yaml:5: shape.cubo = .*: no part has this name; did you mean 'cube'",
        ),
        (GOOD.replace("6]", "0]"), (), r"a.yaml:3: data.patch_size.2 = 0: .*greater than or equal to 1"),
        (GOOD.replace(", 6]", "]"), (), r"a.yaml:3: data.patch_size.2: an item is missing"),
        (GOOD.replace("1e-4", ".nan"), (), r"a.yaml:6: lr = nan: not a finite number"),
        (GOOD + "lr: 2\n", (), r"a.yaml:7: lr: duplicate key, in lines 6 and 7"),
        (GOOD + "enabled: no\n", (), r"a.yaml:7: enabled = 'no': .*'no' is text here"),
        (GOOD + "seed: 12:30\n", (), r"a.yaml:7: seed = '12:30': .*is text here"),
        (GOOD + "seed: 010\n", (), r"a.yaml:7: seed = '010': .*is text here"),
        (GOOD + "name: !!python/object:os.system x\n", (), r"a.yaml:7: name = .*: tags are refused"),
        (GOOD + "\tseed: 1\n", (), r"a.yaml:7:1: not YAML"),
        ("a: &x [*x]\n", (), r"a.yaml:1: a.0: an alias contains itself"),
        (BOMB, (), r"a.yaml:\d+: .*expands to more than 100000 values"),
        ("", (), r"a.yaml:1: the file is empty; it must hold keys"),
        ("- 1\n", (), r"a.yaml:1: the file is a list"),
        ("lr: 1\n", (), r"a.yaml:1: data: the key is missing"),
        (GOOD, ("lr",), r"command line: 'lr' is not an override; write key.path=value"),
        (GOOD, ("lrr=1",), r"command line: lrr = 1: unknown key; did you mean 'lr'"),
        (GOOD, ("lr.x=1",), r"command line: lr.x = 1: lr is 0.0001 and has no keys below it"),
    ],
)
def test_an_error_names_its_place(
    tmp_path: Path, text: str, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, text, *overrides)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_answered_with_a_similar_one(tmp_path: Path) -> None:
    (tmp_path / "pretrain.yaml").write_text(GOOD)
    with pytest.raises(ConfigError, match=r"no such file; did you mean 'pretrain.yaml'"):
        load(tmp_path / "pretrian.yaml", (), Outer)


def test_a_folder_is_not_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a folder, not a configuration; give a YAML file"):
        load(tmp_path, (), Outer)
    (tmp_path / "config.yaml").write_text(GOOD)
    with pytest.raises(ConfigError, match=r"that of this run is .*config\.yaml"):
        load(tmp_path, (), Outer)


def test_a_file_too_large_or_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_text("#" * 1_100_000)
    with pytest.raises(ConfigError, match=r"^[^:]*yaml: \d+ bytes, more than the limit of a configuration"):
        load(tmp_path / "big.yaml", (), Outer)
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match=r"^[^:]*yaml: not UTF-8 text \(byte 3\)"):
        load(tmp_path / "bytes.yaml", (), Outer)


def test_plain_is_the_inverse_of_parse(tmp_path: Path) -> None:
    config = read(tmp_path, GOOD)
    assert parse(plain(config), Outer, "memory") == config
    assert differences(plain(config), plain(read(tmp_path, GOOD, "seed=3"))) == [Difference(("seed",), 0, 3)]


def test_differences_are_values_with_one_text() -> None:
    found = differences({"a": {"b": 1, "c": 2}, "d": "x"}, {"a": {"b": 1, "c": 3}, "ab": [4]})
    assert found == [
        Difference(("a", "c"), 2, 3),
        Difference(("d",), "x", None),
        Difference(("ab",), None, [4]),
    ]
    assert [one.field for one in found if one.within(["a", "d"])] == ["a.c", "d"]
    assert listed(found, 2) == "a.c: 2 -> 3; d: 'x' -> None; ..." and listed(found[:1]) == "a.c: 2 -> 3"


@config_dataclass(frozen=True, kw_only=True, config=STRICT)
class WithDefault:
    shape: choice_of(PARTS) = Choice("cube")  # type: ignore[valid-type]


def test_a_default_choice_has_its_fields_filled_in_like_one_in_the_file() -> None:
    assert plain(parse({}, WithDefault, "a")) == plain(parse({"shape": "cube"}, WithDefault, "a"))
    assert plain(parse({}, WithDefault, "a"))["shape"]["cube"]["edge"] == 1.0


@PARTS.register("stack")
@dataclass(frozen=True, kw_only=True)
class Stack:
    """A component of components."""

    parts: tuple[choice_in_list(PARTS), ...]  # type: ignore[valid-type]
    gaps: Literal["none"] | tuple[Positive, ...] = "none"


@pytest.mark.parametrize(
    ("stack", "message"),
    [
        (
            "[cube, cubo]",
            r"a.yaml:5: shape.stack.parts.1.cubo = {}: no part has this name; did you mean 'cube'",
        ),
        (
            "[cube, {cube: {edge: 0}}]",
            r"a.yaml:5: shape.stack.parts.1.cube.edge = 0: input should be greater than 0",
        ),
        ("[cube], gaps: 3", r"shape.stack.gaps = 3: expected: none or list of numbers > 0; write \[3\]"),
        ("[cube], gaps: [1, -1]", r"shape.stack.gaps.1 = -1: input should be greater than 0"),
    ],
)
def test_an_error_in_a_nested_component_names_its_place(tmp_path: Path, stack: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, GOOD.replace("cube: {edge: 2}", f"stack: {{parts: {stack}}}"))


def test_a_tilde_is_expanded_in_any_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = read(tmp_path, GOOD.replace("here", "~/scans"), "name=~/run")
    assert config.data.root == tmp_path / "scans" and config.name == str(tmp_path / "run")
    assert parse({"root": "~/x"}, Inner, "memory").root == tmp_path / "x"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ConfigError("data.patch_size", [4, 5, 6], "is not divisible", "round it", colon=False),
            "a.yaml:3: data.patch_size = [4, 5, 6] is not divisible; round it",
        ),
        (ConfigError("data.patch_size.1", 5, "odd"), "a.yaml:3: data.patch_size.1 = 5: odd"),
        # not in the file: the line of its parent
        (ConfigError("data.fold", 3, "there is none"), "a.yaml:1: data.fold = 3: there is none"),
        (
            ConfigError("edge", 2, "is below share = 0.5", "raise it", owner="cube", colon=False),
            "a.yaml:5: cube: edge = 2 is below share = 0.5; raise it",
        ),
        (DataError("here", "holds no store", "prepare one"), "a.yaml:2: here: holds no store; prepare one"),
        (
            DataError("cube", "no scan is that large", field="shape.cube.size"),
            "a.yaml:5: cube: no scan is that large",
        ),
        (ConfigError("lr", 3, "too fast"), "command line: lr = 3: too fast"),
        (ConfigError("lr", None, "too fast", place="a.yaml"), "command line: lr: too fast"),
        (ConfigError("lr", None, "too fast", place="b.csv"), "command line: b.csv: lr: too fast"),
        (ConfigError(problem="the lr is wrong"), "the lr is wrong"),
        (DataError("lr.csv", "cannot be read"), "lr.csv: cannot be read"),
        (DataError("database", "x"), "database: x"),
        (DataError("elsewhere/here", "holds no store"), "elsewhere/here: holds no store"),
    ],
)
def test_an_error_of_a_component_gets_the_line_of_its_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: UserError, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(GOOD)
    raised = str(error)
    locate(error, Path("none.yaml"), ["lr=3"])
    locate(error, Path("a.yaml"), ["lr"])
    assert str(error) == raised
    locate(error, Path("a.yaml"), ["lr=3"])
    assert str(error) == message


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        (GOOD.replace("1e-4", "-1"), "lr", -1),
        (GOOD.replace("6]", "0]"), "data.patch_size.2", 0),
        (GOOD.replace("edge: 2", "edge: -2"), "shape.cube.edge", -2),
        (GOOD.replace("edge: 2", "egde: 2"), "shape.cube.egde", 2),
        (
            GOOD.replace("cube: {edge: 2}", "stack: {parts: [cube, {cube: {share: 2}}]}"),
            "shape.stack.parts.1.cube.share",
            2,
        ),
        (GOOD.replace("  root: here\n", ""), "data.root", None),
    ],
)
def test_an_error_has_field_value_and_place(tmp_path: Path, text: str, field: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    error = caught.value
    assert (error.field, error.value) == (field, value) and error.problem
    assert error.line.startswith(f"{tmp_path / 'a.yaml'}:")
    assert str(error).startswith(f"{error.line}: {field}")


def test_every_further_mistake_is_counted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"; also .*; also .*; also .*; and 1 more$") as caught:
        read(tmp_path, GOOD + "a: 1\nb: 1\nc: 1\nd: 1\ne: 1\n")
    assert len(caught.value.also) == 4

"""The package: its modules and files, and that it runs from a checkout that is not installed."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import medcl3d
from tests.test_cli import COMMANDS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def setup() -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources of a release, not installed."""
    copy = tmp_path_factory.mktemp("copy") / "checkout"
    for folder in ("medcl3d", "configs", "tools"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    return copy


def test_every_subpackage_is_packaged(setup: configparser.RawConfigParser) -> None:
    packages = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "medcl3d").rglob("__init__.py")
    }
    assert set(setup["options"]["packages"].split()) == packages | {"medcl3d.configs"}
    assert packages == {
        ".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "medcl3d").rglob("*.py")
    }


def test_tools_are_thin_and_named_like_their_commands() -> None:
    for tool in (ROOT / "tools").glob("*.py"):
        assert tool.stem in COMMANDS
        assert len(tool.read_text().splitlines()) <= 40


@pytest.mark.parametrize("tool", sorted(path.stem for path in (ROOT / "tools").glob("*.py")))
def test_a_tool_runs_from_a_checkout_in_any_folder(checkout: Path, tmp_path: Path, tool: str) -> None:
    done = subprocess.run(
        [sys.executable, checkout / f"tools/{tool}.py", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"medcl3d {tool}" in done.stdout


def test_a_tool_runs_the_code_of_its_checkout(checkout: Path, tmp_path: Path) -> None:
    """An installed medcl3d is not used: the packaged configuration is found in the copy."""
    command = [
        sys.executable,
        checkout / "tools/pretrain.py",
        "pretrain/simulated_overlap",
        "data.root=nowhere",
        "--check",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 3
    assert (
        str(checkout / "configs/pretrain/simulated_overlap.yaml") in done.stderr and "nowhere" in done.stderr
    )


def test_the_wheel_has_exactly_the_files_that_runs_need(checkout: Path, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path]
    done = subprocess.run(build, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"medcl3d-{medcl3d.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        entry = next(name for name in names if name.endswith("entry_points.txt"))
        assert "medcl3d = medcl3d.cli:main" in file.read(entry).decode()
    configs = {f"medcl3d/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    modules = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "medcl3d").rglob("*")
        if path.suffix in (".py", ".j2", ".js", ".css", ".typed")
    }
    assert {name for name in names if ".dist-info/" not in name} == configs | modules
    assert {"medcl3d/py.typed", "medcl3d/comparison/report/templates/report.html.j2"} <= modules and configs
    assert any(name.endswith("licenses/LICENSE") for name in names)

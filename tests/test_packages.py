"""What medcl3d requires: all that it imports, and what its users know it is built on, at work."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import yaml

from medcl3d.cli import main

ROOT = Path(__file__).parents[1]
DISTRIBUTION = {"yaml": "pyyaml", "skimage": "scikit-image", "sklearn": "scikit-learn", "SimpleITK": "simpleitk"}
EXTRAS = ("blosc2", "dicom", "slurm")  # what only one command needs; where it is missing, that command says what to install
ORACLES = {"lightly"}  # measured beside ours where it is installed, and never needed
NAMED = ("torch", "monai", "nibabel", "torchio", "einops", "tensorboard", "scikit-image", "pyyaml")


@pytest.fixture(scope="module")
def setup() -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def required(setup: configparser.RawConfigParser) -> set[str]:
    return named(setup["options"]["install_requires"])


def named(requirements: str) -> set[str]:
    lines = requirements.splitlines()
    return {re.split(r"[ <>=]", line.strip())[0] for line in lines if line.strip() and not line.strip().startswith("#")}


def imported() -> Iterator[tuple[Path, str]]:
    """Every outside package that a file of medcl3d imports, anywhere in it, by its distribution's name."""
    for path in (ROOT / "medcl3d").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for module in modules:
                top = module.split(".")[0]
                if top not in sys.stdlib_module_names and top not in ("medcl3d", ""):
                    yield path, DISTRIBUTION.get(top, top).replace("_", "-")
                if module.startswith("torch.utils.tensorboard"):
                    yield path, "tensorboard"


def test_every_import_is_required_and_what_users_know_is_used(setup: configparser.RawConfigParser) -> None:
    needs = required(setup)
    offered = needs.union(*(named(setup["options.extras_require"][extra]) for extra in EXTRAS), ORACLES)
    missing = {f"{path.relative_to(ROOT)}: {name}" for path, name in imported() if name.replace("pydantic-core", "pydantic") not in offered}
    assert not missing
    assert needs >= set(NAMED)
    assert set(NAMED) <= {name for _, name in imported()}


@contextmanager
def called_by_us(seen: set[str]) -> Iterator[None]:
    """Note the packages of which a function of medcl3d, not an import, calls a function; tensorboard is called through torch."""

    def note(frame: FrameType, event: str, _: Any) -> None:
        caller = frame.f_back
        if event != "call" or caller is None or frame.f_code.co_name == "<module>" or caller.f_code.co_name == "<module>":
            return
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        asked_by = str(caller.f_globals.get("__name__", ""))
        if asked_by.startswith("medcl3d.") or (package == "tensorboard" and asked_by.startswith("torch.utils.tensorboard")):
            seen.add(DISTRIBUTION.get(package, package))

    before: Callable[..., Any] | None = sys.getprofile()
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(before)


def test_a_run_makes_each_of_them_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = {
        "data": {"root": "store", "patch_size": [16, 16, 16]},
        "pairs": "overlapping_crops",
        "views": {"torchio": {"transforms": [{"RandomGhosting": {}}], "first": "mri"}},
        "encoder": {"vit3d": {"patch": [8, 8, 8], "hidden_size": 12, "num_layers": 1, "num_heads": 1}},
        "objective": "simclr",
        "loader": "torchio",
        "train": {"steps": 1, "samples_per_step": 2, "log_every": 1},
        "out_dir": "run",
    }
    Path("c.yaml").write_text(yaml.safe_dump(config))
    seen: set[str] = set()
    with called_by_us(seen):
        for command in ("prepare simulated - --out store num_patients=3 shape=[24,24,24] workers=1", "pretrain c.yaml"):
            with pytest.raises(SystemExit) as over:
                main(command.split())
            assert over.value.code == 0
    assert seen >= set(NAMED), set(NAMED) - seen

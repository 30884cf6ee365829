"""medcl3d requires every package that it imports, and calls functions of the libraries in LIBRARIES."""

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
DISTRIBUTION = {
    "yaml": "pyyaml",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "SimpleITK": "simpleitk",
    "pydantic_core": "pydantic",
    "mlflow": "mlflow-skinny",
}
EXTRAS = (
    "blosc2",
    "dicom",
    "export",
    "mlflow",
    "slurm",
    "wandb",
)  # messages name the command that installs each
ORACLES = {"lightly"}  # compared with our code if installed, never required
LIBRARIES = ("torch", "monai", "nibabel", "torchio", "einops", "tensorboard", "scikit-image", "pyyaml")


@pytest.fixture(scope="module")
def setup() -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def required(setup: configparser.RawConfigParser) -> set[str]:
    return named(setup["options"]["install_requires"])


def named(requirements: str) -> set[str]:
    lines = requirements.splitlines()
    return {
        re.split(r"[ <>=]", line.strip())[0]
        for line in lines
        if line.strip() and not line.strip().startswith("#")
    }


def imported() -> Iterator[tuple[Path, str]]:
    """Path and distribution name of every external import in medcl3d, at any depth of a file."""
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
                if top not in sys.stdlib_module_names and top not in (
                    "medcl3d",
                    "benchmarks",
                    "_typeshed",
                    "",
                ):
                    yield path, DISTRIBUTION.get(top, top).replace("_", "-")
                if module.startswith("torch.utils.tensorboard"):
                    yield path, "tensorboard"


def test_every_import_is_required_and_every_library_is_imported(setup: configparser.RawConfigParser) -> None:
    requirements = required(setup)
    extras = (named(setup["options.extras_require"][extra]) for extra in EXTRAS)
    installable = requirements.union(*extras, ORACLES)
    missing = {f"{path.relative_to(ROOT)}: {name}" for path, name in imported() if name not in installable}
    assert not missing
    assert requirements >= set(LIBRARIES)
    assert set(LIBRARIES) <= {name for _, name in imported()}


@contextmanager
def packages_called(seen: set[str]) -> Iterator[None]:
    """Record the packages whose functions medcl3d calls, without imports; tensorboard through torch."""

    def record(frame: FrameType, event: str, _: Any) -> None:
        caller = frame.f_back
        if event != "call" or caller is None:
            return
        if "<module>" in (frame.f_code.co_name, caller.f_code.co_name):
            return
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        calling_module = str(caller.f_globals.get("__name__", ""))
        if calling_module.startswith("medcl3d.") or (
            package == "tensorboard" and calling_module.startswith("torch.utils.tensorboard")
        ):
            seen.add(DISTRIBUTION.get(package, package))

    before: Callable[..., Any] | None = sys.getprofile()
    sys.setprofile(record)
    try:
        yield
    finally:
        sys.setprofile(before)


def test_a_run_calls_every_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    with packages_called(seen):
        for command in (
            "prepare simulated - --out store num_patients=3 shape=[24,24,24] workers=1",
            "pretrain c.yaml",
        ):
            with pytest.raises(SystemExit) as end:
                main(command.split())
            assert end.value.code == 0
    assert seen >= set(LIBRARIES), set(LIBRARIES) - seen

"""The examples run, in small sizes."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from medcl3d.pairs import PAIRS
from tests.pairs.collections import make_collection

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PLUGIN = EXAMPLES / "own_strategy"


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_own_loop(tmp_path: Path) -> None:
    assert len((EXAMPLES / "own_loop.py").read_text().splitlines()) < 40
    history = loaded(EXAMPLES / "own_loop.py").main(
        tmp_path / "data", num_patients=4, steps=2, samples_per_step=2
    )
    assert len(history) == 2 and all(map(math.isfinite, history))


def test_lightning_loop(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="lightning is not installed: pip install lightning")
    trainer = loaded(EXAMPLES / "lightning_loop.py").main(
        tmp_path / "data",
        num_patients=4,
        steps=2,
        samples_per_step=2,
        accelerator="cpu",
        enable_progress_bar=False,
    )
    assert trainer.global_step == 2 and math.isfinite(float(trainer.callback_metrics["loss"]))


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's package as if it was installed: on the path, with its entry point."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 and newer have it")
    described = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    folder = tmp_path / "same_height-0.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {described['name']}\nVersion: {described['version']}\n"
    )
    lines = [
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items())
        for group, points in described["entry-points"].items()
    ]
    (folder / "entry_points.txt").write_text("".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(PLUGIN)
    for name in ("_constructors", "_schemas"):
        monkeypatch.setattr(PAIRS, name, dict(getattr(PAIRS, name)))
    monkeypatch.setattr(PAIRS, "_searched", False)
    monkeypatch.delitem(sys.modules, "same_height", raising=False)


def test_own_strategy_is_found_by_its_entry_point_and_keeps_its_promise(plugin: None) -> None:
    import medcl3d

    assert "same_height" in PAIRS.names()
    strategy = medcl3d.pairs.SameHeight(tolerance=0.01)  # type: ignore[attr-defined]
    collection = make_collection(0, 3)
    rng = np.random.default_rng(0)
    for anchor in strategy.anchors(collection).ids:
        views = strategy.sample(collection, int(anchor), rng)
        assert views[0].box.start[2] == views[1].box.start[2]
        keys = collection.keys(views, np.zeros(2), np.arange(2))
        relation = strategy.relate(keys, keys, None)
        assert relation.positive.tolist() == [[0, 1], [1, 0]] and not relation.negative.any()


@pytest.mark.slow
def test_own_strategy_installs(tmp_path: Path) -> None:
    build = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        tmp_path,
        PLUGIN,
    ]
    subprocess.run(build, check=True, capture_output=True)
    command = [sys.executable, "-m", "medcl3d", "list", "pairs", "same_height"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "tolerance" in done.stdout


def cells() -> list[str]:
    notebook = json.loads((EXAMPLES / "scans_to_report.ipynb").read_text())
    assert notebook["nbformat"] == 4 and all(not cell.get("outputs") for cell in notebook["cells"])
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code cells in order, as Jupyter runs them, with smaller sizes than those of the first cell."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    first, *rest = cells()
    exec(first, names)
    names |= {"NUM_PATIENTS": 8, "STEPS": 2, "NUM_REPLICATES": 1}
    for cell in rest:
        exec(cell, names)
    report = names["report"]
    assert report.path.is_file() and report.path.name == "report.html"  # type: ignore[attr-defined]
    assert {row["arm"] for row in report.rows} == {"scratch", "overlap"}  # type: ignore[attr-defined]

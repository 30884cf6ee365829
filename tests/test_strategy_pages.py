"""Every strategy has a page that is true: its fields, a picture, a configuration that runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from skimage.io import imread

from medcl3d.catalogue import explain
from medcl3d.pairs import PAIRS
from medcl3d.pretraining.pretrain import pretrain
from tests import pages

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "strategies"
NAMES = PAIRS.names()
PICTURES = sorted((PAGES / "pictures").iterdir())
SMALL = (
    "data.patch_size=[16, 16, 16]",
    "train.steps=2",
    "train.samples_per_step=4",
    "train.log_every=1",
    "encoder={unet3d: {channels: [4, 8], strides: [1, 2]}}",
)


def blocks(page: Path, language: str) -> list[str]:
    return [block.code for block in pages.blocks(page, language)]


@pytest.mark.parametrize("name", NAMES)
def test_a_page_says_what_the_code_says(name: str) -> None:
    page = PAGES / f"{name}.md"
    text = page.read_text(encoding="utf-8")
    assert blocks(page, "text") == [explain("pairs", name) + "\n"], (
        "medcl3d list pairs NAME says something else by now"
    )
    assert all(part in text for part in ("**Needs.**", "**Use.**", "**Assumes.**", "**Fails.**"))
    assert imread(PAGES / "pictures" / f"{name}.webp").size > 100_000
    assert f"](pictures/{name}.webp)\n\n*An anchor (yellow) of " in text and "CC BY" in text
    assert f"[{name}]({name}.md)" in (PAGES / "index.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_of_a_page_runs(name: str, tiny_store: Path, tmp_path: Path) -> None:
    (text,) = blocks(PAGES / f"{name}.md", "yaml")
    assert list(yaml.safe_load(text)["pairs"]) == [name]
    (tmp_path / "page.yaml").write_text(text)
    smaller = ("pairs.multi_crop.local_size=[8, 8, 8]",) if name == "multi_crop" else ()
    run = pretrain(
        tmp_path / "page.yaml", (*SMALL, *smaller, f"data.root={tiny_store}", f"out_dir={tmp_path / 'run'}")
    )
    assert (run / "encoder.safetensors").is_file() and (run / "pictures" / "relation.png").is_file()


def test_no_page_is_left_of_what_is_gone() -> None:
    found = {page.stem for page in PAGES.glob("*.md")} - {"index", "write_your_own", "recovery"}
    assert found == set(NAMES)
    assert {picture.name for picture in PICTURES} == {f"{name}.webp" for name in (*NAMES, "poster")}


def test_no_two_pictures_are_identical() -> None:
    """A strategy that shows nothing of its own would have the picture of its inner strategy."""
    pixels = {picture.name: imread(picture).tobytes() for picture in PICTURES}
    assert len(set(pixels.values())) == len(PICTURES) > 20


def test_pictures_are_small() -> None:
    assert sum(picture.stat().st_size for picture in PICTURES) < 2_400_000


@pytest.fixture
def with_example(tmp_path: Path) -> Path:
    """A copy of the package with the strategy of the page."""
    shutil.copytree(ROOT / "medcl3d", tmp_path / "medcl3d", ignore=shutil.ignore_patterns("__pycache__"))
    (code,) = blocks(PAGES / "write_your_own.md", "python")
    (tmp_path / "medcl3d" / "pairs" / "same_site.py").write_text(code)
    return tmp_path


def output_of(folder: Path, *command: str) -> str:
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_is_a_strategy_with_no_other_edit(tiny_store: Path, with_example: Path) -> None:
    """The file of the page, put into a copy of the package, trains from YAML."""
    shutil.copytree(ROOT / "configs", with_example / "configs")
    (text,) = blocks(PAGES / "write_your_own.md", "yaml")
    (with_example / "own.yaml").write_text(text)
    tool = "import sys; sys.path.insert(0, '.'); from medcl3d.cli import main; main(sys.argv[1:])"
    said = output_of(
        with_example,
        *("-c", tool, "pretrain", "own.yaml", *SMALL),
        *(f"data.root={tiny_store}", "out_dir=run", "placebo=true"),
    )
    assert "same_site (placebo)" in said and (with_example / "run" / "encoder.safetensors").is_file()


@pytest.mark.slow
def test_the_example_keeps_the_promises_of_every_strategy(with_example: Path) -> None:
    shutil.copytree(ROOT / "tests", with_example / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    # The collections of the property tests have no site: the error lists the columns that exist.
    properties = with_example / "tests" / "pairs" / "collections.py"
    properties.write_text(
        properties.read_text().replace(
            '"sex": [', '"site": [("x", "y")[i % 2] for i in range(num_scans)], "sex": ['
        )
    )
    assert " passed" in output_of(
        with_example,
        *(
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "tests/pairs/test_strategies.py",
            "-k",
            "same_site",
        ),
    )


def test_the_example_is_short() -> None:
    (code,) = blocks(PAGES / "write_your_own.md", "python")
    body = code.split("@PAIRS.register")[1]
    assert len([line for line in body.splitlines() if line.strip()]) <= 20

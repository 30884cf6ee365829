"""Every page of a strategy has the measured distances of its pairs, equal to those of the command."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from medcl3d.pairs import PAIRS
from medcl3d.preprocessing.options import prepare_options
from medcl3d.preprocessing.prepare import prepare
from medcl3d.pretraining.pair_measures import PLACES

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "strategies"
SPREAD = r"(none|-?\d+ mm apart \(\d+ to \d+\)(, IoU [01]\.\d\d \([01]\.\d\d to [01]\.\d\d\))?)"
FIGURES = (
    rf"positives within the sample: {SPREAD}",
    rf"positives beyond the sample: {SPREAD}",
    rf"negatives: {SPREAD}",
    "positive weight: " + ", ".join(rf"\d+% {place}" for place in PLACES),
)


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docs/strategies/measure.py as a module."""
    monkeypatch.syspath_prepend(str(PAGES))
    spec = importlib.util.spec_from_file_location("measure", PAGES / "measure.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", PAIRS.names())
def test_a_page_has_its_figures_and_its_command_runs(
    name: str, measure: ModuleType, tiny_store: Path
) -> None:
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    (line,) = re.findall(f"{measure.BEGIN}(.*?){measure.END}", text, re.DOTALL)
    page, data = PAGES / f"{name}.md", measure.set_of(PAGES / f"{name}.md")
    assert f"**Measured** on {data} at 4 mm" in line and f"seed {measure.SEED};" in line
    assert (
        f"`python docs/strategies/measure.py {name}`" in line
        and measure.PREPARE.format(data, measure.DATA) in line
    )
    assert all(
        f"`{change}`" in line for change in (*measure.CHANGES.get(name, ()), *measure.LOCAL.get(name, ()))
    )
    said = re.findall(r"^- (.*)$", line, re.MULTILINE)
    changes = measure.LOCAL["multi_crop"] if name == "multi_crop" else ()
    for figures in (said, measure.measured(page, tiny_store, changes, batches=1)):
        assert all(
            re.fullmatch(pattern, figure) for pattern, figure in zip(FIGURES, figures, strict=False)
        ), figures


def test_a_page_is_written_again_in_place(measure: ModuleType) -> None:
    text = (PAGES / "sum.md").read_text(encoding="utf-8")
    other = measure.with_line(text, "something else\n")
    assert "something else" in other and other.count(measure.BEGIN) == 1
    (line,) = re.findall(f"{measure.BEGIN}(.*?){measure.END}", text, re.DOTALL)
    assert measure.with_line(other, line) == text


@pytest.mark.slow
def test_the_figures_of_a_page_are_those_of_a_fresh_measurement(
    measure: ModuleType, shared_data: Path, tmp_path: Path
) -> None:
    given = prepare_options("bids", {"spacing_mm": [4, 4, 4]})
    prepare("bids", shared_data / "ixi40", tmp_path / "ixi40", fields=given.fields, options=given.options)
    for name in ("overlapping_crops", "metadata_kernel"):
        found = measure.line(PAGES / f"{name}.md", tmp_path)
        assert found in (PAGES / f"{name}.md").read_text(encoding="utf-8"), "make measured writes it again"

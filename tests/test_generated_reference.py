"""The generated parts of the reference name every command, field and component."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import medcl3d
from benchmarks.gpu import TITLE as GPU
from benchmarks.measure import Table
from benchmarks.page import update
from benchmarks.rows import TITLE as ROWS
from benchmarks.scaling import TITLES as SCALING
from medcl3d.catalogue import names_of, schema_of
from medcl3d.config.kinds import CONFIGS
from tests.test_cli import COMMANDS

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def generated() -> ModuleType:
    """docs/generated.py as a module."""
    spec = importlib.util.spec_from_file_location("generated", DOCS / "generated.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["generated"] = module
    spec.loader.exec_module(module)
    return module


def test_every_command_is_documented(generated: ModuleType) -> None:
    found = re.findall(r"^## `medcl3d (\w+)`$", generated.commands(), re.MULTILINE)
    assert found == list(found) and set(found) == set(COMMANDS)


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_field_has_an_entry_with_its_description(generated: ModuleType, kind: str) -> None:
    text = generated.fields(kind)
    entries = dict(re.findall(r"^`([^`]+)` — .*\n: (.*)$", text, re.MULTILINE))
    schema = json.loads(schema_of(kind))
    assert set(schema["properties"]) <= set(entries) and all(entries.values())
    for definition in (one for one in schema["$defs"].values() if "properties" in one):
        for name in definition["properties"]:
            assert any(re.split(r"[.\[]", entry)[-1] == name for entry in entries), name


@pytest.mark.parametrize("kind", ["views", "encoders", "tasks", "sources"])
def test_every_component_has_a_heading(generated: ModuleType, kind: str) -> None:
    assert re.findall(r"^### (\w+)$", generated.components(kind), re.MULTILINE) == names_of(kind)


def test_every_layout_has_a_row_without_empty_cells(generated: ModuleType) -> None:
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in generated.layouts().splitlines()[2:]]
    assert [row[0].strip(" `") for row in rows] == names_of("layouts")
    assert all(len(row) == len(rows[0]) and all(cell.strip() for cell in row) for row in rows)


@pytest.mark.parametrize(("kind", "table"), [("pairs", "strategies"), ("objectives", "objectives")])
def test_every_method_has_a_row_without_empty_cells(generated: ModuleType, kind: str, table: str) -> None:
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in getattr(generated, table)().splitlines()[2:]]
    assert [re.sub(r"\W*\[(\w+)\].*", r"\1", row[0]) for row in rows] == names_of(kind)
    assert all(len(row) == len(rows[0]) and all(cell.strip() for cell in row) for row in rows)


def test_the_pages_contain_every_generated_part_and_every_public_name(generated: ModuleType) -> None:
    marks = {mark for page in DOCS.glob("*/*.md") for mark in generated.MARK.findall(page.read_text())}
    assert {kind for name, kind in marks if name == "fields"} == {"prepare", *CONFIGS}
    parts = {"commands", "fields", "components", "strategies", "objectives", "layouts", "figures"}
    assert {name for name, _ in marks} == parts
    api = (DOCS / "reference" / "api.md").read_text()
    assert all(f"medcl3d.{name}" in api for name in medcl3d.__all__)


def test_measured_figures_are_inserted_and_missing_ones_named(
    generated: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(generated, "FIGURES", tmp_path / "scaling.json")
    assert generated.figures("steps_on_gpus") == "*Not measured.*"
    tables = [Table("Steps on GPUs", ("ranks", "ms"), (("1", "7"),), "A note.")]
    update(tmp_path / "scaling.json", tables, "2 cores")
    assert "| ranks | ms |\n| --- | --- |\n| 1 | 7 |\n\nA note." in generated.figures("steps_on_gpus")
    assert generated.figures("scaling_parameters") == "*Not measured.*"


def test_the_page_of_scaling_has_every_table_of_its_benchmarks(generated: ModuleType) -> None:
    page = (DOCS / "concepts" / "scaling.md").read_text()
    slugs = {re.sub(r"\W+", "_", title.lower()) for title in (*SCALING, ROWS, GPU)}
    assert {kind for name, kind in generated.MARK.findall(page) if name == "figures"} == slugs


def test_entries_of_docstrings_become_lists_and_examples_code(generated: ModuleType) -> None:
    lines = [
        "Load.",
        "",
        "    run(1)",
        "",
        "a, b  the first",
        "      two",
        "c     third",
        "",
        "Errors: none.",
    ]
    generated.docstring(None, "", "", None, None, lines)
    assert ".. code-block:: python" in lines and "- **a, b**: the first" in lines and "  two" in lines
    assert lines[lines.index("- **c**: third") + 1] == ""


def test_every_source_is_in_the_table_of_sources() -> None:
    page = (DOCS / "reference" / "preparation.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(names_of("sources"))


def test_the_python_guide_names_every_public_name() -> None:
    page = (DOCS / "howto" / "python.md").read_text()
    table = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    assert {name for row in table for name in re.findall(r"`(\w+)`", row)} == set(medcl3d.__all__)

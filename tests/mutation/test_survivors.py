"""The list of explained survivors refers to existing code."""

from __future__ import annotations

import ast

import pytest
import yaml

from tests.mutation.run import LIST, ROOT, one_line, own_tests, read_list

LISTED = yaml.safe_load(LIST.read_text(encoding="utf-8"))


def code_of(file: str, function: str) -> str:
    """The source of a function or method as one line."""
    source = (ROOT / file).read_text(encoding="utf-8")
    body: list[ast.stmt] = ast.parse(source).body
    for name in function.split("."):
        found = next(
            node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name
        )
        body = found.body
    return one_line([ast.get_source_segment(source, found) or ""])


@pytest.mark.parametrize("file", LISTED["survivors"])
def test_every_survivor_changes_a_line_of_its_function_and_has_a_reason(file: str) -> None:
    for entry in LISTED["survivors"][file]:
        assert entry.keys() == {"function", "was", "becomes", "reason"}
        assert one_line([entry["was"]]) in code_of(file, entry["function"]), (
            f"{file} has changed: make mutation FILES={file}"
        )
        assert len(entry["reason"].split()) > 3


def test_listed_tests_exist_and_a_file_without_tests_uses_those_of_its_folder() -> None:
    further, explained = read_list()
    for file, tests in further.items():
        assert (ROOT / file).is_file() and all((ROOT / test).is_file() for test in tests), file
    assert all(mutant.was != mutant.becomes for mutants in explained.values() for mutant in mutants)
    boxes = ROOT.joinpath("medcl3d/pairs/boxes.py").relative_to(ROOT)
    assert own_tests(boxes, {}) == ["tests/pairs/test_boxes.py"]
    assert own_tests(boxes.with_name("matching.py"), {}) == ["tests/pairs"]

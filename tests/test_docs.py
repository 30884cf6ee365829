"""The README and every page of the site: commands parse, YAML loads, links exist, and code runs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.page_data import RUNS
from tests.pages import ROOT, blocks, check_command, check_yaml, name_of, pages, run_page

LANGUAGES = {"", "console", "bash", "python", "yaml", "text", "json"}
ELSEWHERE = {
    "README": "tests/test_readme.py runs the commands of a first pretraining",
    "exports": "tests/exports runs the same exports, and the programs that read them",
    "strategies/write_your_own": "tests/test_strategy_pages.py puts the example into a copy of the package",
}
NAMES = {name_of(page): page for page in pages()}
by_name = pytest.mark.parametrize("name", NAMES)


@by_name
def test_blocks_are_valid(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands, options and fields exist; YAML loads; Python parses."""
    monkeypatch.chdir(ROOT)
    for block in blocks(NAMES[name]):
        assert block.language in LANGUAGES, block.language
        if block.language == "yaml" and name not in ELSEWHERE:
            check_yaml(block, tmp_path)
        elif block.language == "python":
            ast.parse(block.code)
        elif block.is_shell:
            for line in block.commands:
                check_command(line)


@by_name
def test_every_block_runs_or_has_a_reason(name: str) -> None:
    for block in blocks(NAMES[name]):
        if block.language == "python" or block.is_shell:
            is_run = name in RUNS or name in ELSEWHERE
            assert is_run or block.reason, f"no test runs this, and no comment gives a reason:\n{block.code}"


def test_links_of_the_readme_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert link.startswith("http") or (ROOT / link).exists(), link


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if run.is_fast else pytest.mark.slow) for name, run in RUNS.items()]
)
@pytest.mark.timeout(3600)
def test_a_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks in their order, with small settings, in a folder with the scans that it names."""
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    run = RUNS[name]
    run.prepare(folder)
    run.check(run_page(NAMES[name], folder, run.small))

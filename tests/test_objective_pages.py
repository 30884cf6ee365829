"""Every objective has a page that agrees with the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from medcl3d.catalogue import explain
from medcl3d.objectives import OBJECTIVES
from tests.pages import blocks

PAGES = Path(__file__).parents[1] / "docs" / "objectives"


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_a_page_says_what_the_code_says(name: str) -> None:
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    (block,) = blocks(PAGES / f"{name}.md", "text")
    assert block.code == explain("objectives", name) + "\n"
    assert (
        all(part in text for part in ("**Loss.**", "**Use.**", "**Relation.**", "**Watch.**"))
        and "Source: " in text
    )
    assert f"[{name}]({name}.md)" in (PAGES / "index.md").read_text(encoding="utf-8")


def test_no_page_is_left_of_what_is_gone() -> None:
    assert {page.stem for page in PAGES.glob("*.md")} == {"index", *OBJECTIVES.names()}

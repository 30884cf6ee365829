"""The report in a headless Chromium: it asks for nothing, complains of nothing, sorts by keyboard, and fits phones and paper."""

from __future__ import annotations

import itertools
import shutil
import time
from pathlib import Path

import pytest

from tests.comparison.browser import CHROMIUM, Tab, chromium
from tests.comparison.large_comparison import written

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; apt-get install chromium"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("large"))


@pytest.fixture(scope="module")
def tab(report, tmp_path_factory):
    profile = tmp_path_factory.mktemp("profile")
    with chromium(profile) as opened:
        opened.size(1200)
        opened.open(report)
        yield opened
    shutil.rmtree(profile, ignore_errors=True)


def test_nothing_leaves_the_file_and_nothing_goes_wrong(tab: Tab, report: Path):
    asked = {address for address in tab.requests if not address.startswith("data:")}
    assert asked <= {report.as_uri(), "about:blank"}
    assert tab.errors == []
    assert tab.value("[...document.images].every(i => i.complete && i.naturalWidth > 0)")


def test_tables_sort_by_keyboard(tab: Tab):
    first = "document.querySelector('table.sortable')"
    column = f"[...{first}.tBodies[0].rows].map(r => r.cells[1].dataset.value * 1)"
    before = tab.value(column)
    assert len(before) == 4
    assert before != sorted(before)
    tab.value(f"{first}.tHead.rows[0].cells[1].querySelector('button').focus()")
    tab.press("Enter", 13, "\r")
    assert tab.value(column) == sorted(before)
    assert tab.value(f"{first}.tHead.rows[0].cells[1].getAttribute('aria-sort')") == "ascending"
    tab.press("Enter", 13, "\r")
    assert tab.value(column) == sorted(before, reverse=True)
    tab.press("Tab", 9)
    tab.press("Enter", 13, "\r")
    assert tab.value(f"{first}.tHead.rows[0].cells[2].getAttribute('aria-sort')") == "ascending"
    assert tab.value(f"{first}.tBodies[0].rows[3].cells[2].textContent") == ""  # the reference has no difference: it comes last


@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_is_as_wide_as_the_screen(tab: Tab, width: int):
    tab.size(width)
    assert tab.value("document.documentElement.scrollWidth") <= width


CONTRAST = """
(() => {
  const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(v => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = element => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (!colour.startsWith("rgba(0, 0, 0, 0")) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const says = element => [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
  const texts = [...document.body.querySelectorAll("*")].filter(e => says(e) && e.tagName !== "SCRIPT");
  return Math.min(...texts.map(element => {
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))];
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  }));
})()
"""


@pytest.mark.parametrize(("width", "dark"), list(itertools.product([1200, 390], [False, True])))
def test_text_stands_out_in_light_and_dark(tab: Tab, tmp_path: Path, width: int, dark: bool):
    """4.5 to 1 is what the Web Content Accessibility Guidelines ask for."""
    tab.size(width, dark=dark)
    assert tab.value(CONTRAST) >= 4.5
    shown = "document.querySelector('picture img').currentSrc === document.querySelector('picture source').srcset"
    deadline = time.monotonic() + 10  # a browser picks the image a moment after the colours
    while tab.value(shown) != dark and time.monotonic() < deadline:
        time.sleep(0.05)
    assert tab.value(shown) == dark
    tab.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_it_prints(tab: Tab):
    tab.size(1200)
    assert tab.printed().startswith(b"%PDF")

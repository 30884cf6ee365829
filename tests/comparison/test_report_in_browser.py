"""Reports in a headless Chromium: no requests, no errors, keyboard control, layouts for phones and paper."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest

from tests.comparison.browser import CHROMIUM, Tab, chromium
from tests.comparison.large_comparison import CONFIG, SCREENING, written

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; apt-get install chromium"),
]


PHONE, PAPER = 390, 695
"""Pixels: a phone's width, and that of A4 between margins of 13 mm."""


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, Path]:
    """A tested comparison of four arms; and a screening of ten, with scores of seven encoders."""
    contents = {"tested": CONFIG, "screening": SCREENING}
    return {name: written(tmp_path_factory.mktemp(name), content) for name, content in contents.items()}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    profile = tmp_path_factory.mktemp("profile")
    with chromium(profile) as opened:
        yield opened
    shutil.rmtree(profile, ignore_errors=True)


def opened(browser: Tab, report: Path) -> Tab:
    browser.size(1200)
    browser.open(report)
    return browser


@pytest.fixture
def tested(reports, browser) -> Tab:
    return opened(browser, reports["tested"])


@pytest.fixture
def screening(reports, browser) -> Tab:
    return opened(browser, reports["screening"])


@pytest.fixture(params=["tested", "screening"])
def tab(request, reports, browser) -> Tab:
    return opened(browser, reports[request.param])


def test_the_page_makes_no_request_and_has_no_error(tab: Tab, reports: dict[str, Path]):
    asked = {address for address in tab.requests if not address.startswith("data:")}
    assert asked <= {"about:blank", *(path.as_uri() for path in reports.values())}
    assert tab.errors == []
    assert tab.value("[...document.images].every(i => i.complete && i.naturalWidth > 0)")


FIRST = "document.querySelector('table.sortable')"


def test_tables_sort_by_keyboard_and_start_with_the_best(tested: Tab):
    column = f"[...{FIRST}.tBodies[0].rows].map(r => r.cells[1].dataset.value * 1)"
    names = f"[...{FIRST}.tBodies[0].rows].map(r => r.cells[0].textContent)"
    ranking = tested.value(column)
    assert len(ranking) == 4 and ranking == sorted(ranking, reverse=True), "the best is first"
    assert [name.split(".")[0] for name in tested.value(names)] == ["1", "2", "3", "4"]

    def press(cell: int) -> str:
        tested.value(f"{FIRST}.tHead.rows[0].cells[{cell}].querySelector('button').focus()")
        tested.press("Enter", 13, "\r")
        return tested.value(f"{FIRST}.tHead.rows[0].cells[{cell}].getAttribute('aria-sort')")

    assert press(0) == "ascending" and tested.value(column) != ranking, "names from A on"
    assert press(1) == "descending" and tested.value(column) == ranking
    assert press(1) == "ascending" and tested.value(column) == sorted(ranking)
    tested.press("Tab", 9)
    tested.press("Enter", 13, "\r")
    assert tested.value(f"{FIRST}.tHead.rows[0].cells[2].getAttribute('aria-sort')") == "descending"
    assert (
        tested.value(f"{FIRST}.tBodies[0].rows[3].cells[2].textContent") == ""
    )  # the reference has no difference and is last
    assert (
        press(3) == "ascending"
        and tested.value(f"{FIRST}.tBodies[0].rows[0].cells[3].textContent") == "p < 0.001"
    )


def test_empty_columns_are_left_out(screening: Tab):
    heads = f"[...{FIRST}.tHead.rows[0].cells].map(c => c.textContent)"
    assert screening.value(heads) == ["arm", "dice", "difference to scratch"]
    empty = (
        "[...document.querySelectorAll('table')].filter(t => [...t.tHead.rows[0].cells].some((_, k) "
        "=> [...t.tBodies[0].rows]"
    )
    assert (
        screening.value(
            f"{empty}.every(r => !r.cells[k].textContent.trim()))).map(t => t.parentElement.ariaLabel)"
        )
        == []
    )


@pytest.mark.parametrize("width", [360, PHONE, 1200])
def test_the_page_is_as_wide_as_the_screen(tab: Tab, width: int):
    tab.size(width)
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert tab.value(
        "[...document.querySelectorAll('table')].every(t => t.closest('.scroll[tabindex][aria-label]'))"
    )


SCROLLED = """
(() => {
  const found = [...document.querySelectorAll("div.scroll")].filter(
    e => e.querySelector("table") && e.scrollWidth > e.clientWidth + 40);
  return found.map(box => {
    box.scrollLeft = 40;
    const name = box.querySelector("tbody tr > :first-child"), place = name.getBoundingClientRect();
    const said = {
      away: place.left - box.getBoundingClientRect().left,
      share: place.width / document.documentElement.clientWidth,
      solid: !getComputedStyle(name).backgroundColor.startsWith("rgba(0, 0, 0, 0"),
      shaded: getComputedStyle(box).backgroundImage.includes("gradient"),
    };
    box.scrollLeft = 0;
    return said;
  });
})()
"""


def test_row_names_stay_visible_when_a_table_scrolls_on_a_phone(screening: Tab):
    screening.size(PHONE)
    boxes = screening.value(SCROLLED)
    assert len(boxes) >= 4, "tables of cells, pairs of arms and cases are wide"
    for box in boxes:
        assert abs(box["away"]) < 1 and box["solid"] and box["shaded"]
        assert box["share"] <= 0.4


BROKEN = """
[...document.querySelectorAll("th")].flatMap(th => {
  const walker = document.createTreeWalker(th, NodeFilter.SHOW_TEXT), broken = [];
  while (walker.nextNode()) for (const word of walker.currentNode.data.matchAll(/[^\\s-]+/g)) {
    const range = document.createRange();
    range.setStart(walker.currentNode, word.index);
    range.setEnd(walker.currentNode, word.index + word[0].length);
    if (new Set([...range.getClientRects()].map(r => Math.round(r.top))).size > 1) broken.push(word[0]);
  }
  return broken;
})
"""


@pytest.mark.parametrize(("width", "media"), [(PHONE, ""), (1200, ""), (PAPER, "print")])
def test_no_name_breaks_within_a_word(screening: Tab, width: int, media: str):
    screening.size(width, media=media)
    assert screening.value(BROKEN) == []


def test_a_picture_is_enlarged_by_enter(screening: Tab):
    screening.size(1280)
    summary = "document.querySelectorAll('.pictures.one .enlarge summary')[0]"
    assert screening.value(f"{summary}.querySelector('img').alt").startswith("Views that are drawn together")
    width = f"{summary}.querySelector('img').getBoundingClientRect().width"
    assert 900 < screening.value(width) <= 1280, "one column: as wide as the page"
    screening.value(f"{summary}.focus()")
    screening.press("Enter", 13, "\r")
    assert (
        screening.value(width) == screening.value(f"{summary}.querySelector('img').naturalWidth + 2") == 1487
    )
    assert screening.value("document.documentElement.scrollWidth") <= 1280
    screening.press("Enter", 13, "\r")
    assert screening.value(width) <= 1280


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
  const says = element => [...element.childNodes].some(
    node => node.nodeType === 3 && node.textContent.trim());
  const texts = [...document.body.querySelectorAll("*")].filter(e => says(e) && e.tagName !== "SCRIPT");
  return Math.min(...texts.map(element => {
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))];
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  }));
})()
"""


@pytest.mark.parametrize(("width", "dark"), list(itertools.product([1200, 390], [False, True])))
def test_text_stands_out_in_light_and_dark(tab: Tab, tmp_path: Path, width: int, dark: bool):
    """4.5 to 1 is the contrast that the Web Content Accessibility Guidelines require."""
    tab.size(width, dark=dark)
    assert tab.value(CONTRAST) >= 4.5
    shown = (
        "[...document.querySelectorAll('.plot img')].every(i => (getComputedStyle(i).display === "
        "'none') === (i.className !== '%s'))"
    )
    assert tab.value(shown % ("dark" if dark else "light"))
    tab.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


TOO_LARGE = "Math.max(...[...document.querySelectorAll('table, img')].map(e => e.getBoundingClientRect().%s))"


def test_it_prints(tab: Tab):
    """Also from a dark screen: the print is dark on white, and nothing is cut off."""
    tab.size(PAPER, dark=True, media="print")
    assert tab.value("document.documentElement.scrollWidth") <= PAPER
    assert tab.value(TOO_LARGE % "right") <= PAPER
    assert tab.value("Math.max(...[...document.images].map(i => i.getBoundingClientRect().height))") < 1000, (
        "less than a sheet"
    )
    assert tab.value(
        "[...document.querySelectorAll('.plot .dark')].every(i => getComputedStyle(i).display === 'none')"
    )
    # Otherwise the headings of a table do not repeat on the next page.
    assert tab.value("getComputedStyle(document.querySelector('thead button')).display") == "contents"
    assert tab.printed().startswith(b"%PDF")

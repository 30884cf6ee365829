"""Ninety scans with the same warning are one line; different warnings are kept."""

from __future__ import annotations

from medcl3d.core.warning_summary import MAX_LINES, first_reasons, summarise_warnings


def test_warnings_that_differ_only_in_numbers_are_one_line() -> None:
    scans = [(f"s{n}", [f"strongly anisotropic: 0.{n}, 1, {n}e-3 mm"]) for n in range(10, 90)]
    scans += [("t", []), ("u", ["the label is empty", "the label is empty"])]
    assert summarise_warnings(scans, 82) == [
        "warning: 80 of 82 scans, as s10: strongly anisotropic: 0.10, 1, 10e-3 mm",
        "warning: 1 of 82 scans, as u: the label is empty",
    ]


def test_many_kinds_are_limited_and_counted() -> None:
    lines = summarise_warnings([("a", [chr(97 + n) for n in range(20)])], 1)
    assert len(lines) == MAX_LINES + 1 and lines[-1] == f"... and {20 - MAX_LINES} more kinds of warnings"
    assert (
        first_reasons(["x"] * (MAX_LINES + 3))[-1] == "... and 3 more scans"
        and first_reasons(["x"] * MAX_LINES) == ["x"] * MAX_LINES
    )

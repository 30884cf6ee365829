"""Ninety scans with one warning are one line; what differs is not lost."""

from __future__ import annotations

from medcl3d.data.told import MOST, reasons_told, warnings_told


def test_warnings_that_differ_in_numbers_only_are_one_line() -> None:
    scans = [(f"s{n}", [f"strongly anisotropic: 0.{n}, 1, {n}e-3 mm"]) for n in range(10, 90)]
    scans += [("t", []), ("u", ["the label is empty", "the label is empty"])]
    assert warnings_told(scans, 82) == [
        "warning: 80 of 82 scans, as s10: strongly anisotropic: 0.10, 1, 10e-3 mm",
        "warning: 1 of 82 scans, as u: the label is empty",
    ]


def test_many_kinds_are_cut_and_counted() -> None:
    lines = warnings_told([("a", [chr(97 + n) for n in range(20)])], 1)
    assert len(lines) == MOST + 1 and lines[-1] == f"... and {20 - MOST} more kinds of warnings"
    assert reasons_told(["x"] * (MOST + 3))[-1] == "... and 3 more scans" and reasons_told(["x"] * MOST) == ["x"] * MOST

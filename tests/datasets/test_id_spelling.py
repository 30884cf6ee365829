"""Different spellings of one id, and ids changed by a spreadsheet."""

from __future__ import annotations

from pathlib import Path

import pytest

from medcl3d.core.errors import DataError
from medcl3d.datasets.id_spelling import plain_spelling
from medcl3d.datasets.manifest import Manifest
from medcl3d.datasets.sources import SOURCES


def write(tmp_path: Path, text: str) -> Manifest:
    (tmp_path / "m.csv").write_text(text, encoding="utf-8")
    return SOURCES.get("csv")(tmp_path / "m.csv")


SAME = [
    ("7", "007"),
    ("P1", "p1"),
    ("1", "1.0"),
    ("1", "01.00"),
    ("1000", "1e3"),
    ("P 1", "P1"),
    ("P_1", "P-1"),
    ("P-1", "P\u20131"),
    ("12", "\uff11\uff12"),
    ("straße", "STRASSE"),
    ("P02", "p2"),
    ('="007"', "7"),
    ("'007", "7"),
    ("sub-01", "1"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_two_spellings_of_an_id_are_reported_with_both_lines(tmp_path: Path, one: str, other: str) -> None:
    notes = write(tmp_path, f"patient,path\n{one},a.nii\nx,b.nii\n{other},c.nii\n").notes
    at = tmp_path / "m.csv"
    assert notes == (
        "1 groups of patient ids differ only in spelling and may be one person; use one spelling per id "
        f"({one} in {at}:2 and {other} in {at}:4)",
    )


@pytest.mark.parametrize(
    "ids",
    [
        ("10", "1", "100"),
        ("1.1", "1.10"),
        ("1.5", "15"),
        ("1-2", "12"),
        ("P1", "Q1"),
        ("a", "ab"),
        ("1e3", "3"),
    ],
)
def test_different_ids_are_not_grouped(tmp_path: Path, ids: tuple[str, ...]) -> None:
    assert (
        write(tmp_path, "patient,path\n" + "".join(f"{one},{i}.nii\n" for i, one in enumerate(ids))).notes
        == ()
    )


@pytest.mark.parametrize(
    ("one", "other"), [("Mu\u0308ller", "M\xfcller"), ("P1", "P\u200b1"), ("P 1", "P\xa01"), ("P 1", "P  1")]
)
def test_ids_that_look_equal_are_refused(tmp_path: Path, one: str, other: str) -> None:
    with pytest.raises(
        DataError, match=r"m\.csv:4: patient = '.*': looks like '.*' in .*m\.csv:2 but has other characters"
    ) as caught:
        write(tmp_path, f"patient,path\n{one},a.nii\nx,b.nii\n{other},c.nii\n")
    assert ascii(one) in str(caught.value) and ascii(other) in str(caught.value)


def test_spellings_of_scan_and_session_ids_are_reported(tmp_path: Path) -> None:
    notes = "\n".join(
        write(tmp_path, "scan,patient,session,path\nA1,p,01,a.nii\na1,p,1,b.nii\nb,q,1,c.nii\n").notes
    )
    at = tmp_path / "m.csv"
    text = "differ only in spelling and may be one"
    assert f"1 groups of scan ids {text} scan; use one spelling per id (A1 in {at}:2 and a1" in notes
    assert (
        f"1 groups of session ids of a patient {text} session; use one spelling per id (01 in {at}:2" in notes
    )
    named_after = write(tmp_path, "scan,patient,session,path\nP1,P1,1,a.nii\np1,p1,2,b.nii\n").notes
    assert len(named_after) == 1, "scans named after their patients are reported once"


@pytest.mark.parametrize("column", ["patient", "scan", "session", "frame"])
@pytest.mark.parametrize("text", ["1.23457E+11", "1.2346e+11", "1E+05", "1.23457E11", '"1,23457E+11"'])
def test_ids_cut_by_a_spreadsheet_are_refused(tmp_path: Path, column: str, text: str) -> None:
    other = "" if column == "scan" else ",scan"
    rows = f"a.nii,{text}{other and ',a'}\nb.nii,{'x' if column == 'scan' else text}{other and ',b'}\n"
    cause = "a spreadsheet or a conversion to a number has truncated this id"
    fault = rf"m\.csv:2: {column} = '.*': {cause}.* as text"
    with pytest.raises(DataError, match=fault):
        write(tmp_path, f"path,{column}{other}\n{rows}")


def test_other_spreadsheet_changes_are_reported(tmp_path: Path) -> None:
    dates = write(tmp_path, "patient,path\n02-Jan,a.nii\nMar-01,b.nii\n1-2,c.nii\n").notes
    assert len(dates) == 1 and dates[0].startswith("2 patient ids look like dates")
    dates = write(
        tmp_path, "patient,path\n2024-02-01 00:00:00,a.nii\n2/1/2024,b.nii\n01.02.2024,c.nii\n1.2.30,d.nii\n"
    ).notes
    assert len(dates) == 1 and dates[0].startswith("3 patient ids look like dates")
    long = [f"12345678901234{i}00" for i in range(4)]
    notes = write(
        tmp_path, "patient,path\n" + "".join(f"{one},{i}.nii\n" for i, one in enumerate(long))
    ).notes
    assert len(notes) == 1 and "4 patient ids have only zeros after the 15th digit" in notes[0]
    assert (
        write(
            tmp_path, "patient,path\n" + "".join(f"{one[:-1]}7,{i}.nii\n" for i, one in enumerate(long))
        ).notes
        == ()
    )


def test_placeholders_of_several_scans_are_reported(tmp_path: Path) -> None:
    notes = write(
        tmp_path, "patient,path\nAnonymous,a.nii\nanonymous,b.nii\nanonymous,c.nii\n-9,d.nii\n-9,e.nii\n"
    ).notes
    assert any(
        note.startswith("2 patient ids look like placeholders and have several scans") for note in notes
    )


def test_the_plain_spelling_is_the_same_for_variants() -> None:
    assert plain_spelling("ID 007_A") == plain_spelling("id7-a") == "id7-a"
    assert plain_spelling("1e+3") == plain_spelling("1000.0") == "1000" and plain_spelling("1.25") == "1.25"

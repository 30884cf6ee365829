"""Names of files that are not ASCII, or no text at all, under locales that cannot write them: one line, and
no traceback.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medcl3d.core.errors import DataError, MachineError
from medcl3d.io import encoding


def test_names_are_refused_if_the_locale_is_not_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    encoding.refuse_other_encoding([("m.csv:2", "ä.nii.gz")])
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "iso8859-1")
    encoding.refuse_other_encoding([("m.csv:2", "a.nii.gz")])
    with pytest.raises(
        MachineError, match=r"m\.csv:2: \\xe4\.nii\.gz is not ASCII.* iso8859-1; set PYTHONUTF8=1"
    ):
        encoding.refuse_other_encoding([("m.csv:2", "ä.nii.gz")])


def test_a_text_that_cannot_be_written_is_of_the_machine_or_of_the_name() -> None:
    assert isinstance(encoding.unwritable(UnicodeEncodeError("ascii", "ä", 0, 1, "")), MachineError)
    found = encoding.unwritable(UnicodeEncodeError("utf-8", os.fsdecode(b"\xfc"), 0, 1, ""))
    assert isinstance(found, DataError) and str(found).isascii()


ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
STRICT = {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:strict"}


def run(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from medcl3d.cli import main; main()", *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
    )


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("ä.nii.gz", "b.nii.gz", "c.nii.gz"):
        nibabel.save(
            nibabel.Nifti1Image(rng.normal(100, 20, (8, 8, 8)).astype(np.float32), np.eye(4)), tmp_path / name
        )
    return tmp_path


@pytest.mark.parametrize("arguments", [("prepare", "csv", "m.csv", "--out", "o"), ("check", ".")])
def test_a_command_under_an_ascii_locale_says_in_one_line_what_would_do(
    scans: Path, arguments: tuple[str, ...]
) -> None:
    (scans / "m.csv").write_text("path,patient\nä.nii.gz,p\nb.nii.gz,q\n", encoding="utf-8")
    done = run(scans, ASCII, *arguments)
    assert done.returncode == 4 and "PYTHONUTF8=1" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_ascii_names_need_no_utf8(scans: Path) -> None:
    (scans / "m.csv").write_text("path,patient\nb.nii.gz,p\nc.nii.gz,q\n", encoding="utf-8")
    assert run(scans, ASCII, "prepare", "csv", "m.csv", "--out", "o", "workers=1").returncode == 0


def test_a_name_that_is_no_text_may_be_counted_on_a_strict_stream(scans: Path) -> None:
    (scans / "ä.nii.gz").rename(scans / os.fsdecode(b"M\xfcller.nii.gz"))
    done = run(scans, STRICT, "prepare", "folder", ".", "--out", "o", "pattern={scan}[bc]", "workers=1")
    assert done.returncode == 3 and "Traceback" not in done.stderr
    (scans / "T1_b.nii.gz").write_bytes((scans / "b.nii.gz").read_bytes())
    (scans / "T1_c.nii.gz").write_bytes((scans / "c.nii.gz").read_bytes())
    done = run(
        scans, STRICT, "prepare", "folder", ".", "--out", "o", "pattern=T1_{patient}.nii.gz", "workers=1"
    )
    assert done.returncode == 0 and r"M\udcfcller.nii.gz" in done.stdout

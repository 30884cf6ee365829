"""Inputs as in real collections: scripts beside the checkout write them, and each command ends as documented
there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from medcl3d.cli import app
from medcl3d.store.store import Store

ROOT = Path(__file__).parents[1]
CASES = ROOT.parent / "shared" / "cases"
SCRIPTS = sorted(CASES.glob("[0-9]*.py"))
TINY = """
data: {{root: {root}, patch_size: [32, 32, 32], smaller_than_patch: pad}}
pairs: {{{pairs}}}
views: {{mri: {{}}}}
encoder: {{resnet3d: {{depth: 18, width: 0.125}}}}
objective: {{simclr: {{}}}}
train: {{steps: 2, samples_per_step: 2, warmup_steps: 0, workers: 0}}
out_dir: {root}_run
"""

Check = Callable[[Path], None]
CHECKS: dict[str, Check] = {}


def case(number: str) -> Callable[[Check], Check]:
    def keep(check: Check) -> Check:
        CHECKS[number] = check
        return check

    return keep


def medcl3d(*arguments: object) -> Result:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def prepare_table(folder: Path) -> Result:
    return medcl3d("prepare", "csv", folder / "m.csv", "--out", folder / "o", "workers=1")


def dry_run(folder: Path, root: Path, pairs: str = "overlapping_crops: {}", *overrides: str) -> Result:
    """`pretrain --check` on a store."""
    path = folder / "any.yaml"
    path.write_text(TINY.format(root=folder / "o", pairs=pairs))
    return medcl3d("pretrain", path, f"data.root={root}", *overrides, "--check")


@case("01")
def nan_is_not_a_patient(folder: Path) -> None:
    done = prepare_table(folder)
    output = done.output
    if done.exit_code == 0:
        output += dry_run(folder, folder / "o", "same_patient: {position: free}").output
    assert done.exit_code in (0, 3) and re.search("nan", output, re.IGNORECASE)


@case("02")
def a_patient_not_available_is_refused_or_missing(folder: Path) -> None:
    done = prepare_table(folder)
    if done.exit_code == 0:
        assert (
            re.search("n/a|patient is missing", done.output) and dry_run(folder, folder / "o").exit_code == 0
        )
    else:
        assert done.exit_code == 3 and re.search(r"m\.csv:[23]\b", done.output) and "n/a" in done.output


@case("03")
def ids_that_a_spreadsheet_rounded_are_noted(folder: Path) -> None:
    done = prepare_table(folder)
    assert done.exit_code in (0, 3) and re.search(r"1\.23(457|46)E\+11", done.output)


@case("06")
def missing_classes_are_missing_or_noted(folder: Path) -> None:
    done = prepare_table(folder)
    if done.exit_code == 0 and not re.search(r"class.*\b(nan|None|unknown)\b", done.output):
        classes = Store.open(folder / "o").collection.table["class"].fillna("").str.lower()
        assert not {"nan", "none", "unknown"} & set(classes)
    assert done.exit_code in (0, 3) and "class" in done.output


@case("07")
def a_path_may_contain_a_number_sign(folder: Path) -> None:
    for table, out in (("m.csv", "cohort"), ("m2.csv", "cohort #2")):
        assert medcl3d("prepare", "csv", folder / table, "--out", folder / out, "workers=1").exit_code == 0
    shutil.rmtree(folder / "cohort")
    done = dry_run(folder, folder / "cohort #2")
    assert done.exit_code == 0, done.output


@case("08")
def a_series_that_lacks_a_tag_in_part_is_one_volume(folder: Path) -> None:
    for name in "AB":
        done = medcl3d("prepare", "dicom", folder / name, "--out", folder / f"o{name}", "workers=1")
        if done.exit_code == 0:
            store = Store.open(folder / f"o{name}")
            assert len(store) == 1 and sorted(store.collection.shapes[0]) == [12, 20, 20]
            assert max(store.spacing_mm(0)) == pytest.approx(3)
            assert "PatientSex" in done.output
        else:
            assert done.exit_code == 3 and "PatientSex" in done.output


@case("10")
def labelled_test_cases_test_and_unlisted_images_are_counted(folder: Path) -> None:
    done = medcl3d("prepare", "nnunet", folder / "nn", "--out", folder / "o", "workers=1")
    assert done.exit_code == 0, done.output
    split = json.loads((folder / "o" / "split.json").read_text())
    assert split["test"] == ["c6", "c7", "c8"] and split["train"] == ["c0", "c1", "c2", "c3"]
    assert re.search(r"2 images.*not listed.*c4_0000", done.output)


@case("12")
def label_maps_among_scans_trigger_a_warning(folder: Path) -> None:
    done = medcl3d(
        "prepare",
        "folder",
        folder / "br",
        "--out",
        folder / "o",
        "pattern={patient}/*_{modality}.nii.gz",
        "workers=1",
    )
    assert done.exit_code == 0 and re.search(
        "6 of 18 scans.*a label map or a shape, not an image", done.output
    )


@case("13")
def the_age_of_the_standard_is_accepted(folder: Path) -> None:
    done = medcl3d("prepare", "bids", folder / "b", "--out", folder / "o", "workers=1")
    assert done.exit_code == 0, done.output
    ages = Store.open(folder / "o").collection.table.set_index("patient")["age"]
    assert str(ages["sub-04"]) in ("89", "89.0", "", "nan", "n/a")


@case("15")
def a_valid_sform_precedes_a_rounded_qform(folder: Path) -> None:
    done = medcl3d("check", folder / "m.csv", "max_bad_fraction=1", "workers=1")
    assert done.exit_code == 0 and "3 scans of" in done.output and "impossible" not in done.output


@case("16")
def a_small_shared_memory_is_reported_immediately(folder: Path) -> None:
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode
    ):
        pytest.skip("this machine does not allow private mounts (unshare -m)")
    fields = ("num_patients=4", "shape=[32,32,32]", "workers=1")
    assert medcl3d("prepare", "simulated", "-", "--out", folder / "o", *fields).exit_code == 0
    config = folder / "any.yaml"
    config.write_text(TINY.format(root=folder / "o", pairs="overlapping_crops: {}"))
    program = "from medcl3d.cli import main; main()"
    inside = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"'
    pretrain = [sys.executable, "-c", program, "pretrain", str(config), "train.workers=2"]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", inside, "sh", *pretrain],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=ROOT,
    )
    assert done.returncode == 4 and "Traceback" not in done.stderr
    assert all(word in done.stderr for word in ("shared memory is full", "--shm-size", "train.workers=0"))


@case("18")
def the_separator_line_of_excel_is_skipped(folder: Path) -> None:
    done = prepare_table(folder)
    assert (done.exit_code == 0 and "12 scans of 12 patients" in done.output) or (
        done.exit_code == 3 and "sep=" in done.output
    )


@case("19")
def a_number_may_be_a_path(folder: Path) -> None:
    fields = ("num_patients=4", "shape=[32,32,32]", "workers=1")
    assert medcl3d("prepare", "simulated", "-", "--out", folder / "o", *fields).exit_code == 0
    done = dry_run(folder, folder / "o", "overlapping_crops: {}", "out_dir=20261129")
    assert done.exit_code == 0, done.output
    done = medcl3d("prepare", "csv", "q=2/m.csv", "--out", folder / "p")
    assert done.exit_code != 0 and "q=2/m.csv" in done.output and "no such file" in done.output


@case("20")
def links_without_content_are_answered_with_datalad_get(folder: Path) -> None:
    done = medcl3d("prepare", "bids", folder / "b", "--out", folder / "o", "workers=1")
    assert done.exit_code == 3 and "datalad get" in done.output


@pytest.mark.skipif(not SCRIPTS, reason="the scripts are not beside the checkout (../shared/cases)")
@pytest.mark.parametrize("script", SCRIPTS or [None], ids=[path.stem for path in SCRIPTS] or ["none"])
def test_a_case_ends_as_documented_in_its_script(script: Path, tmp_path: Path) -> None:
    number = script.stem[:2]
    assert number in CHECKS, f"{script.name} has no check here; write one from its docstring"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(
        [sys.executable, str(script), str(tmp_path)], check=True, capture_output=True, env=environment
    )
    CHECKS[number](tmp_path)

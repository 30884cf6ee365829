"""`medcl3d init`: files, messages, and that nothing of the user is overwritten."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
import yaml

from medcl3d.config.kinds import CONFIGS
from medcl3d.config.loading import load
from medcl3d.core.errors import DataError
from medcl3d.proposal.init import init
from medcl3d.proposal.measure import choose_measure, fraction_to_test
from tests.proposal.conftest import grey
from tests.test_cli import medcl3d


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load_configs(folder: Path) -> dict[str, object]:
    from importlib import import_module

    made = {}
    for path in folder.glob("*.yaml"):
        module, _, name = CONFIGS[path.stem].partition(":")
        made[path.stem] = load(path, (), getattr(import_module(module), name))
    return made


def test_a_folder_becomes_a_plan(scans: Path) -> None:
    done = medcl3d("init", scans)
    assert done.exit_code == 0, done.output
    text = done.stdout
    assert "scans: 20, of 8 patients in 12 sessions" in text and "modalities: FLAIR 8, T1 8, CT 4" in text
    assert "label maps: 8, for 8 scans of 8 patients" in text
    assert "frames of several scans: 8, with 16 scans" in text
    assert "spacing: right 1 to 1.5, front 1 to 2, head 2 to 3 mm; median 1 x 1 x 2" in text
    assert "5 of 20 rows:" in text and "next, from this folder:" in text
    folder = Path("Meine_Scans_plan")
    configs = load_configs(folder)
    assert set(configs) == {"pretrain", "finetune", "evaluate", "compare"}
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("  medcl3d ")]
    assert [line[1] for line in commands] == [
        "prepare",
        "pretrain",
        "finetune",
        "evaluate",
        "compare",
        "compare",
    ]
    table = pd.read_csv(folder / "scans.csv", dtype=str, keep_default_na=False)
    assert all(Path(text).exists() for name in ("path", "label") for text in table[name] if text)
    checked = medcl3d(*commands[0][1:], "--check")
    assert checked.exit_code == 0 and "20 scans would be prepared" in checked.stdout, checked.output
    assert "1 rows are DICOM series" in checked.stdout


def test_a_second_run_changes_nothing_and_edited_files_are_kept(scans: Path) -> None:
    files = init(scans, Path("plan"), say=lambda _: None)
    before = {path: path.read_bytes() for path in files.values()}
    said: list[str] = []
    init(scans, Path("plan"), say=said.append)
    assert {path: path.read_bytes() for path in files.values()} == before
    assert any(line.startswith("unchanged in plan: scans.csv") for line in said)
    files["scans.csv"].write_text("path,patient\n")
    said.clear()
    init(scans, Path("plan"), say=said.append)
    assert files["scans.csv"].read_text() == "path,patient\n"
    assert any("kept in plan: scans.csv" in line and "--force" in line for line in said)
    assert "`medcl3d init plan/scans.csv --out plan` plans for the scans of the kept table" in said
    init(scans, Path("plan"), force=True, say=said.append)
    assert files["scans.csv"].read_bytes() == before[files["scans.csv"]]


def test_the_edited_table_is_planned_without_writing_it(scans: Path) -> None:
    files = init(scans, Path("plan"), say=lambda _: None)
    table = files["scans.csv"]
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:5]) + "\n")
    before, said = table.read_bytes(), list[str]()
    again = init(table, Path("plan"), force=True, say=said.append)
    assert "scans.csv" not in again and table.read_bytes() == before
    assert "plan/scans.csv: read by the source csv" in said
    assert any("prepare csv plan/scans.csv --out plan/data allow_outside=true" in line for line in said)


def test_patients_without_labels_train_if_labels_are_the_measure(scans: Path) -> None:
    said: list[str] = []
    init(scans, Path("plan"), say=said.append)
    assert not any("unlabelled" in line for line in said)
    (scans / "CT Bäuche/Masken/leber_ct.nii.gz").unlink()
    init(scans, Path("plan"), force=True, say=said.append)
    assert any("medcl3d prepare csv" in line and line.endswith(" unlabelled=train") for line in said)


def test_other_sources_are_proposed_without_a_table(real: Path) -> None:
    said: list[str] = []
    files = init(real / "ms_longitudinal", Path("plan"), say=said.append)
    assert "scans.csv" not in files and set(files) == {"pretrain.yaml", "evaluate.yaml", "compare.yaml"}
    prepare = next(line for line in said if "prepare" in line)
    assert prepare.strip().startswith(f"medcl3d prepare bids {real / 'ms_longitudinal'} --out plan/data")
    evaluate = yaml.safe_load(files["evaluate.yaml"].read_text())
    assert evaluate["retrieval"] == {"same": "patient", "differ": "session"}


def test_dicom_alone_and_faulty_bids(tmp_path: Path, write_nifti) -> None:
    from tests.datasets.dicoms import write_series

    for number in (1, 2):
        write_series(
            tmp_path / f"export/{number}", grey(number, (5, 7, 6)), uid=f"1.2.{number}", PatientID=f"{number}"
        )
        write_nifti(f"heads/sub-{number}/scan.nii.gz", grey(number))
    said: list[str] = []
    files = init(tmp_path / "export", say=said.append)
    assert set(files) == {"pretrain.yaml"} and any("prepare dicom" in line for line in said)
    assert any(line.startswith("no comparison: nothing measures an encoder yet") for line in said)
    said.clear()
    init(tmp_path / "heads", say=said.append)
    assert any(line.startswith("not read as bids: ") for line in said)
    assert any("prepare csv heads_plan/scans.csv" in line for line in said)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(f"p{n}", "l", "", "1", "T1") for n in range(8)], ("finetune", "dice")),
        ([(f"p{n}", "", "ab"[n % 2], "1", "T1") for n in range(8)], ("evaluate", "linear/auroc")),
        (
            [(f"p{n % 4}", "", "", str(n // 4), "T1") for n in range(8)],
            ("evaluate", "retrieval/average_precision"),
        ),
        (
            [(f"p{n % 4}", "", "", "1", f"T{n // 4}") for n in range(8)],
            ("evaluate", "retrieval/average_precision"),
        ),
        ([(f"p{n}", "", "", "1", "T1") for n in range(8)], None),
        ([("p1", "l", "a", "1", "T1"), ("p2", "", "", "2", "T1")], None),
    ],
)
def test_the_measure_follows_from_the_columns(rows: list, expected: tuple | None) -> None:
    table = pd.DataFrame(rows, columns=["patient", "label", "class", "session", "modality"])
    found = choose_measure(table.assign(scan=[str(n) for n in range(len(table))]))
    assert (found and (found.command, found.metric)) == expected
    if found and found.labelled:
        assert found.labelled == (2, 4), "of 8 patients, 4 test"


def test_few_patients_test_a_larger_fraction() -> None:
    assert [fraction_to_test(pd.DataFrame({"patient": range(num)})) for num in (5, 10, 16, 100)] == [
        0.5,
        0.5,
        0.31,
        0.25,
    ]


def test_the_fraction_is_of_the_patients_that_are_measured() -> None:
    labels = ["l"] * 10 + [""] * 90
    assert fraction_to_test(pd.DataFrame({"patient": range(100), "label": labels})) == 0.5
    assert fraction_to_test(pd.DataFrame({"patient": range(100), "label": [""] * 100})) == 0.25


@pytest.mark.parametrize(
    ("name", "message"),
    [("nothing", "no such file or folder"), ("one.nii.gz", "is one file"), ("store", "is a prepared store")],
)
def test_other_paths_are_refused(
    tiny_store: Path, tmp_path: Path, write_nifti, name: str, message: str
) -> None:
    write_nifti("one.nii.gz", grey(1))
    (tmp_path / "store").symlink_to(tiny_store)
    with pytest.raises(DataError, match=re.escape(message)):
        init(tmp_path / name)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_from_a_folder_to_the_report_of_a_comparison(scans: Path) -> None:
    done = medcl3d("init", scans, "--out", "plan")
    commands = [shlex.split(line)[1:] for line in done.stdout.splitlines() if line.startswith("  medcl3d ")]
    tiny = {
        "prepare": ["workers=1"],
        "pretrain": ["train.steps=2", "train.warmup_steps=1", "train.samples_per_step=2"],
        "finetune": ["train.steps=2", "train.warmup_steps=1", "train.samples_per_step=2"],
        "evaluate": ["voxel_probe.queries=200", "voxel_probe.candidates=200", "voxel_probe.controls=false"],
        "compare": [
            "replicates=1",
            "controls=[scratch]",
            "vary={}",
            "pretrain={train.steps: 2, train.warmup_steps: 1, train.samples_per_step: 2}",
            "finetune.set={transfer: encoder, train.steps: 2, train.warmup_steps: 1}",
        ],
    }
    for command in commands:
        run = medcl3d(*command, *tiny[command[0]])
        assert run.exit_code == 0, (command, run.output)
    assert Path("plan/runs/compare/report.html").exists()

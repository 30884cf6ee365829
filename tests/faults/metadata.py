"""Faults 41 to 46: metadata."""

from __future__ import annotations

from tests.faults.build import (
    all_patients,
    all_scans_of_others,
    both_sides,
    cells,
    config,
    dicom_series,
    edited,
    good,
    lonely,
    manifest,
    pretrained,
)
from tests.faults.fault import CHECK, DICOM, PREPARE, PRETRAIN, Fault


def some(row: int) -> str:
    """An age, missing in every third row of a table."""
    return "n/a" if row % 3 == 0 else str(40 + row)


METADATA = [
    Fault(
        41,
        "metadata partly missing",
        lambda f, _: good(f, ["a,p,40", "b,q,n/a", "c,r,"], "scan,patient,age"),
        PREPARE,
        ["age is missing in 2 of 3 scans"],
        0,
    ),
    Fault(
        41,
        "metadata missing everywhere",
        config(
            lambda c: c.update(pairs={"metadata_kernel": {"columns": {"age": 5.0}}}),
            cells("age", lambda i: "n/a"),
        ),
        PRETRAIN,
        ["metadata_kernel: the column 'age' is empty", "remove it, or fill it in"],
        3,
    ),
    Fault(
        41,
        "metadata missing, reported before training",
        config(lambda c: c.update(pairs={"metadata_kernel": {"columns": {"age": 5.0}}}), cells("age", some)),
        PRETRAIN,
        [
            "metadata_kernel: age is missing in",
            "a pair is compared by its other columns (on_missing: ignore)",
        ],
        0,
    ),
    Fault(
        41,
        "metadata missing, left out",
        config(
            lambda c: c.update(pairs={"metadata_kernel": {"columns": {"age": 5.0}, "on_missing": "drop"}}),
            cells("age", some),
        ),
        PRETRAIN,
        ["scans, its age is missing", "left out:"],
        0,
    ),
    Fault(
        41,
        "metadata missing, refused",
        config(
            lambda c: c.update(pairs={"metadata_kernel": {"columns": {"age": 5.0}, "on_missing": "error"}}),
            cells("age", some),
        ),
        PRETRAIN,
        ["metadata_kernel: age is missing in", "on_missing is error", "fill it in"],
        3,
    ),
    Fault(
        42,
        "age of -1",
        lambda f, _: good(f, ["a,p,40", "b,q,-1"], "scan,patient,age"),
        PREPARE,
        ["manifest.csv:3: age = '-1'", "n/a"],
        3,
    ),
    Fault(
        42,
        "age of 430",
        lambda f, _: good(f, ["a,p,40", "b,q,430"], "scan,patient,age"),
        PREPARE,
        ["manifest.csv:3: age = '430'"],
        3,
    ),
    Fault(
        42,
        "text among days",
        lambda f, _: good(f, ["a,p,0", "b,q,soon"], "scan,patient,session_days"),
        PREPARE,
        ["manifest.csv:3: session_days = 'soon'", "correct it"],
        3,
    ),
    Fault(
        42,
        "slip among numbers",
        lambda f, _: good(f, ["a,p,12.5", "b,q,13.l", "c,r,9"], "scan,patient,volume"),
        PREPARE,
        [
            "column volume: 1 of its 3 cells are not numbers",
            "correct them, or write n/a",
            "'13.l' in",
            "manifest.csv:3",
        ],
        0,
    ),
    Fault(
        43,
        "one id, two rows",
        manifest("scan,patient,path\na,p,a.nii.gz\na,q,b.nii.gz\n"),
        CHECK,
        ["manifest.csv:2: scan = 'a': also manifest.csv:3", "keep one"],
        3,
    ),
    Fault(
        43,
        "one patient, two sexes",
        lambda f, _: good(f, ["a,p,F", "b,q,M", "c,p,M"], "scan,patient,sex"),
        PREPARE,
        ["manifest.csv:4: sex = 'M': patient 'p' has 'F' in", "manifest.csv:2", "correct one"],
        3,
    ),
    Fault(
        44,
        "patient on both sides, manifest",
        lambda f, _: good(f, ["a,p,train", "b,p,test", "c,q,train"], "scan,patient,split"),
        PREPARE,
        ["1 patients are in train and in test: p"],
        3,
    ),
    Fault(
        44,
        "patients under another name",
        lambda f, _: good(f, ["a,p", "b,p", "c,q"], "scan,subject_id"),
        PREPARE,
        [
            "manifest.csv:1: column 'subject_id'",
            "could be on both sides of the split",
            "rename subject_id to patient",
        ],
        3,
    ),
    Fault(
        44,
        "patient on both sides, split.json",
        config(store=edited("split.json", both_sides)),
        PRETRAIN,
        ["split.json", "1 patients are in train and in test", "leave each on one side"],
        3,
    ),
    Fault(
        44,
        "test patient seen in pretraining",
        pretrained(all_patients),
        ("finetune", "c.yaml", "--check"),
        ["pretraining used", "of the test patients", "pretrain on the training patients"],
        3,
    ),
    Fault(
        44,
        "test scan seen under another id",
        pretrained(all_scans_of_others),
        ("finetune", "c.yaml", "--check"),
        [
            "pretraining used",
            "test scans",
            "under other patient ids",
            "the same file",
            "pretrain without them",
        ],
        3,
    ),
    Fault(
        45,
        "no positives at all",
        config(lambda c: c.update(pairs="same_patient"), lonely),
        PRETRAIN,
        ["same_patient", "left out: its patient has no other scan", "choose overlapping_crops"],
        3,
    ),
    Fault(
        46,
        "names of patients",
        dicom_series(PatientID="SECRET", PatientName="Doe^Jane"),
        (*DICOM, "hash_ids=true"),
        ["_1_CT_"],
        0,
        "out/manifest.csv",
        without=["SECRET", "Doe", "Jane", "20200131"],
    ),
    Fault(
        46,
        "names of patients, any source",
        lambda f, _: good(
            f, ["SECRET1,Doe,20200131", "SECRET2,Doe,20210131", "SECRET3,Jane,1"], "scan,patient,session"
        ),
        (*PREPARE, "hash_ids=true"),
        ["3 scans of 2 patients", ",2,unknown,"],
        0,
        "out/manifest.csv",
        without=["SECRET", "Doe", "Jane", "20200131"],
    ),
]

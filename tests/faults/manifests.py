"""Faults 13 to 21: manifests."""

from __future__ import annotations

import os
from functools import partial

from tests.faults.build import copies, good, manifest, outside, put, special, table
from tests.faults.fault import CHECK, PREPARE, PRETRAIN, Fault

MANIFESTS = [
    Fault(
        13,
        "byte order mark and semicolons",
        lambda f, _: (good(f), table(f, "\ufeff" + (f / "manifest.csv").read_text().replace(",", ";"))),
        PREPARE,
        ["a,p", "b,q"],
        0,
        "out/manifest.csv",
    ),
    Fault(
        13,
        "latin-1",
        manifest("scan,patient,path\na,Müller,a.nii.gz\n".encode("latin-1")),
        CHECK,
        ["manifest.csv:2", "not UTF-8", "save the table as UTF-8"],
        3,
    ),
    Fault(
        14,
        "ids are text",
        lambda f, _: good(f, ["001,007,NA", "010,1e3,EU"], "scan,patient,site"),
        PREPARE,
        ["001,007", "NA", "010,1e3"],
        0,
        "out/manifest.csv",
    ),
    Fault(
        15,
        "NaN in JSON",
        manifest('[{"path": "a.nii.gz", "age": NaN}]', "manifest.json"),
        ("check", "manifest.json"),
        ["manifest.json", "NaN is not JSON", "write null"],
        3,
    ),
    Fault(
        15,
        "key twice in JSON",
        manifest('[{"path": "a", "path": "b"}]', "manifest.json"),
        ("check", "manifest.json"),
        ["manifest.json", "['path'] occur twice", "keep one"],
        3,
    ),
    Fault(
        15,
        "truncated JSON",
        manifest('[{"path": "a.nii.gz", "pati', "manifest.json"),
        ("check", "manifest.json"),
        ["manifest.json:1", "cannot be read as JSON"],
        3,
    ),
    Fault(
        16,
        "missing files",
        manifest("scan,patient,path\n" + "".join(f"s{i},p,{i}.nii.gz\n" for i in range(14))),
        PREPARE,
        ["14 files of the manifest are missing under", "9.nii.gz", "correct the paths"],
        3,
        without=["10.nii.gz"],
    ),
    Fault(
        17,
        "path with ..",
        partial(outside, path="../secret.nii.gz"),
        ("check", "in"),
        ["'../secret.nii.gz'", "leaves the root", "allow_outside"],
        3,
    ),
    Fault(
        17,
        "absolute path",
        partial(outside, path="/etc/hostname"),
        ("check", "in"),
        ["'/etc/hostname'", "leaves the root", "allow_outside"],
        3,
    ),
    Fault(
        17,
        "link out of the root",
        partial(outside, path="link.nii.gz"),
        ("check", "in"),
        ["'link.nii.gz'", "is a link out of the root", "copy the file"],
        3,
    ),
    Fault(18, "loop of links", special(lambda p: p.symlink_to(p)), CHECK, ["bad.nii.gz", "links"], 3),
    Fault(18, "pipe", special(os.mkfifo), CHECK, ["bad.nii.gz", "is a pipe or a device", "not a file"], 3),
    Fault(18, "folder", special(lambda p: p.mkdir()), CHECK, ["bad.nii.gz", "is a folder", "not a file"], 3),
    Fault(
        18,
        "device",
        special(lambda p: p.symlink_to("/dev/zero")),
        (*PREPARE, "allow_outside=true"),
        ["bad.nii.gz", "is a pipe or a device"],
        3,
        "out/report.csv",
    ),
    Fault(19, "one content, two patients", copies(), PREPARE, ["the same file under two patients: a of p, b of q"], 0),
    Fault(
        19,
        "one content on both sides",
        copies(("train", "test")),
        PREPARE,
        ["the same file is in train and in test: a of p, b of q", "give both scans one patient"],
        3,
    ),
    Fault(
        20,
        "fewer scans than a batch",
        put("train", "samples_per_step", value=64),
        PRETRAIN,
        ["64 samples a step", "visited more than once"],
        0,
    ),
    Fault(
        21,
        "one file twice",
        manifest("scan,patient,path\na,p,a.nii.gz\nb,p,./a.nii.gz\n"),
        CHECK,
        ["'a.nii.gz' stands in rows [2, 3]", "keep one"],
        3,
    ),
]

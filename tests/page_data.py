"""Scans and files that pages name, and how each page runs."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from medcl3d.datasets.sources.simulated import simulated
from medcl3d.preprocessing.options import prepare_options
from medcl3d.preprocessing.prepare import prepare
from tests.pages import ROOT, SMALL, SMALL_ENCODER

SHAPE = (32, 32, 32)
SMALL_COMPARISON = (
    *(f"{where}.{field}" for where in ("pretrain", "finetune.set") for field in SMALL_ENCODER),
    *(
        f"{where}.train.{field}"
        for where in ("pretrain", "finetune.set")
        for field in ("steps=2", "warmup_steps=1")
    ),
    "pretrain.train.samples_per_step=2",
    "finetune.set.train.samples_per_step=2",
    "vary.num_labelled=[2]",
    "controls=[scratch]",
    "replicates=1",
)


@dataclass(frozen=True)
class Run:
    """How a page runs: what its folder holds before, overrides per command, and a check of its names."""

    prepare: Callable[[Path], None]
    small: Mapping[str, Sequence[str]] = field(default_factory=lambda: SMALL)
    check: Callable[[dict[str, Any]], None] = lambda names: None
    is_fast: bool = False


def nothing(folder: Path) -> None:
    """An empty folder."""


def store(*names: str) -> Callable[[Path], None]:
    """Stores of one simulated cohort: 8 patients, up to 2 visits, 2 modalities, labels, age, sex, site."""

    def make(folder: Path) -> None:
        first, *others = names
        given = prepare_options("simulated", {"num_patients": 8, "shape": list(SHAPE), "workers": 1})
        prepare(
            "simulated", None, folder / first, fields=given.fields, options=given.options, say=lambda _: None
        )
        for name in others:
            shutil.copytree(folder / first, folder / name)

    return make


def tables(folder: Path) -> None:
    """scans/PATIENT/SESSION_MODALITY.nii.gz with labels, and tables that list them."""
    manifest = simulated(folder / "raw", num_patients=6, max_visits=1, num_modalities=1, shape=SHAPE)
    rows = []
    for row in manifest.table.to_dict("records"):
        path = f"scans/{row['patient']}/{row['session']}_{row['modality']}.nii.gz"
        label = f"scans/labels/{row['patient']}_{row['session']}.nii.gz"
        for source, target in ((row["path"], path), (row["label"], label)):
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "raw" / source, folder / target)
        rows.append(
            {key: row[key] for key in ("patient", "session", "modality", "age")}
            | {"path": path, "label": label}
        )
    shutil.rmtree(folder / "raw")
    with (folder / "scans.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    (folder / "scans.json").write_text(json.dumps(rows))


def ct(folder: Path) -> None:
    """Scans and a table of six CT: tissue of 40 HU in air, with the denser of two organs in the label map."""
    rng, rows = np.random.default_rng(0), []
    for number in range(6):
        distance = np.linalg.norm(np.indices(SHAPE) - rng.uniform(13, 18, (3, 1, 1, 1)), axis=0)
        organ = distance < 6
        values = np.where(organ, 120, np.where(distance < 13, 40, -1000)) + rng.normal(0, 10, SHAPE)
        name = f"P{number}.nii.gz"
        write(folder / "scans" / name, values.astype(np.int16))
        write(folder / "labels" / name, organ.astype(np.uint8))
        paths = {"path": f"scans/{name}", "label": f"labels/{name}"}
        rows.append({**paths, "patient": name[:2], "modality": "CT"})
    with (folder / "scans.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def write(path: Path, values: np.ndarray) -> None:
    """A NIfTI file with voxels of 1 mm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)


def bids(folder: Path) -> None:
    """Six subjects with T1w and FLAIR: ds001/ and ixi40/ without label maps, ds002/ with two derivatives."""
    rng, root = np.random.default_rng(0), folder / "ds001"
    for number in range(1, 7):
        subject = f"sub-{number:02d}"
        for suffix in ("T1w", "FLAIR"):
            write(
                root / subject / "anat" / f"{subject}_{suffix}.nii.gz",
                rng.normal(100, 20, SHAPE).astype("float32"),
            )
    (root / "dataset_description.json").write_text('{"Name": "example", "BIDSVersion": "1.8.0"}')
    for name in ("ds002", "ixi40"):
        shutil.copytree(root, folder / name)
    maps = {"T1w_dseg": "fmriprep", "desc-brain_mask": "fmriprep", "label-lesion_mask": "lesions"}
    for subject in (one.name for one in root.glob("sub-*")):
        for name, derivative in maps.items():
            labels = (rng.random(SHAPE) > 0.5).astype("uint8")
            path = (
                folder / "ds002" / "derivatives" / derivative / subject / "anat" / f"{subject}_{name}.nii.gz"
            )
            write(path, labels)


def own_configuration(folder: Path) -> None:
    """my_pretrain.yaml, a packaged configuration."""
    shutil.copy(ROOT / "configs" / "pretrain" / "mine.yaml", folder / "my_pretrain.yaml")


def dicom(folder: Path) -> None:
    """export/: a CT of each of four patients."""
    from tests.datasets.dicoms import write_series

    rng = np.random.default_rng(0)
    for number in range(4):
        voxels = rng.integers(-900, 900, (16, 16, 16)).astype(np.int16)
        own = {"FrameOfReferenceUID": f"1.2.7.{number}", "StudyInstanceUID": f"1.2.8.{number}"}
        write_series(
            folder / "export" / str(number), voxels, f"1.2.9.{number}", PatientID=f"P{number}", **own
        )


def nnunet(folder: Path) -> None:
    """Raw folders of nnU-Net and of the Decathlon with the same six cases."""
    rng, cases = np.random.default_rng(0), [f"case_{number:03d}" for number in range(6)]
    raw, decathlon = folder / "nnUNet_raw" / "Dataset004_Hippocampus", folder / "Task04_Hippocampus"
    for case in cases:
        image, label = rng.normal(100, 20, SHAPE).astype("float32"), (rng.random(SHAPE) > 0.5).astype("uint8")
        write(raw / "imagesTr" / f"{case}_0000.nii.gz", image)
        write(decathlon / "imagesTr" / f"{case}.nii.gz", image)
        for root in (raw, decathlon):
            write(root / "labelsTr" / f"{case}.nii.gz", label)
    described = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "anterior": 1},
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps({**described, "numTraining": len(cases)}))
    training = [
        {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in cases
    ]
    described = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "anterior"}}
    (decathlon / "dataset.json").write_text(json.dumps({**described, "training": training, "test": []}))


def checked(folder: Path) -> None:
    """A folder, a DICOM export, a table and a store."""
    tables(folder)
    dicom(folder)
    shutil.move(folder / "export", folder / "export_of_dicom")
    shutil.copytree(folder / "scans", folder / "export_of_scans")
    store("data/mine")(folder)


def foreign(folder: Path) -> None:
    """A table with scans, and weights with random values under the names of anatomix."""
    import torch

    from medcl3d.encoders.whole_unet3d import WholeUNet3d

    tables(folder)
    torch.save(WholeUNet3d(1).state_dict(), folder / "anatomix.pth")


def fine_tuned(folder: Path) -> None:
    """runs/fine, a small segmentation, and new scans."""
    import medcl3d

    store("data/mine")(folder)
    fields = dict(one.split("=", 1) for one in SMALL["finetune"]) | {
        "data.root": folder / "data/mine",
        "init": "scratch",
    }
    typed = {key: _typed(value) for key, value in fields.items()}
    medcl3d.finetune("finetune/mine_small", out_dir=folder / "runs/fine", overrides=typed)
    new_scans(folder)


def _typed(value: Any) -> Any:
    import yaml

    return yaml.safe_load(value) if isinstance(value, str) else str(value)


def new_scans(folder: Path) -> None:
    """new_scans/ and new_scan.nii.gz, simulated."""
    manifest = simulated(
        folder / "other", num_patients=2, max_visits=1, num_modalities=1, shape=SHAPE, seed=1
    )
    (folder / "new_scans").mkdir()
    for path in manifest.table["path"]:
        shutil.copy(folder / "other" / path, folder / "new_scans")
    shutil.copy(next((folder / "new_scans").iterdir()), folder / "new_scan.nii.gz")


def torchio_scans(folder: Path) -> None:
    """Two scans of each of two patients, of four shapes, and a store."""
    store("data/mine")(folder)
    shapes = {
        "01_before": (24, 20, 18),
        "01_after": (20, 22, 19),
        "02_before": (18, 18, 20),
        "02_after": (30, 17, 17),
    }
    for name, shape in shapes.items():
        affine = np.diag([1, 1.5, 1, 1])
        values = np.random.default_rng(0).random(shape, dtype=np.float32)
        nibabel.save(nibabel.Nifti1Image(values, affine), folder / f"{name}.nii.gz")


def checks_python(names: dict[str, Any]) -> None:
    """Shapes that the Python guide states."""
    assert names["vector"].shape == (8,) and names["volume"].shape == (4, *SHAPE)
    assert names["trained"].channels == (10,)


def checks_torchio(names: dict[str, Any]) -> None:
    """Shapes that the page for users of TorchIO states."""
    assert names["first"].shape == names["second"].shape == (8, 1, 16, 16, 16)
    assert names["where"].shape == (8, 2, 6) and set(names["of_scan"]) <= {"before", "after"}


LABELS = {**SMALL, "finetune": SMALL["finetune"][:-1]}  # these pages choose the number of labels
OWN_ENCODER = {"finetune": SMALL["finetune"][2:]}  # these pages choose the encoder
PRESET = {  # the page's configurations have a network for a GPU, and keep later steps
    **LABELS,
    "pretrain": (*SMALL["pretrain"], "train.keep_steps=[]"),
    **dict.fromkeys(("show_pairs", "audit"), SMALL_ENCODER),
}
STEPS = {**SMALL, "pretrain": tuple(one for one in SMALL["pretrain"] if "steps" not in one)}

RUNS = {
    "start/tutorial": Run(nothing, {}),
    "howto/own_data": Run(tables),
    "howto/bids": Run(bids),
    "howto/dicom": Run(dicom),
    "howto/nnunet": Run(nnunet),
    "howto/ct": Run(ct, PRESET),
    "howto/public_sets": Run(nothing),
    "howto/check": Run(checked),
    "howto/pseudonymise": Run(lambda folder: (tables(folder), bids(folder))[0]),
    "howto/few_labels": Run(store("data/mine"), LABELS),
    "howto/no_labels": Run(store("data/mine")),
    "howto/see": Run(fine_tuned),
    "howto/compare": Run(store("data/mine"), {**SMALL, "compare": SMALL_COMPARISON}),
    "howto/predict": Run(fine_tuned),
    "howto/foreign_weights": Run(foreign, OWN_ENCODER),
    "howto/extend_run": Run(store("data/mine"), STEPS),
    "howto/cluster": Run(store("data/mine")),
    "howto/editor": Run(own_configuration),
    "howto/python": Run(new_scans, SMALL, checks_python, is_fast=True),
    "howto/torchio": Run(torchio_scans, SMALL, checks_torchio),
    "concepts/splits": Run(tables),
    "reference/preparation": Run(bids),
}

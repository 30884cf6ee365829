"""Builders of faults; each is called with an empty folder and a prepared store."""

from __future__ import annotations

import gzip
import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import yaml

RAMP = np.arange(8 * 9 * 10, dtype=np.int16).reshape(8, 9, 10)


def nifti(path: Path, voxels: np.ndarray = RAMP, affine: np.ndarray | None = None, **header: Any) -> Path:
    """A volume as NIfTI, with optional changes of header fields."""
    content = bytearray(
        nibabel.Nifti1Image(
            voxels, np.diag([1.0, 1, 1.2, 1]) if affine is None else affine, dtype=voxels.dtype
        ).to_bytes()
    )
    changed = nibabel.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in header.items():
        changed[name] = value
    content[:348] = changed.binaryblock
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(bytes(content), mtime=0) if path.name.endswith(".gz") else bytes(content))
    return path


def table(folder: Path, text: str | bytes, name: str = "manifest.csv") -> Path:
    """A manifest."""
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


def good(
    folder: Path,
    rows: Sequence[str] = ("a,p", "b,q", "c,r"),
    head: str = "scan,patient",
    tail: Sequence[str] = (),
) -> None:
    """Valid scans with different content, and their manifest."""
    for number, row in enumerate(rows):
        nifti(folder / f"{row.split(',')[0]}.nii.gz", RAMP + number)
    lines = [f"{head},path", *(f"{row},{row.split(',')[0]}.nii.gz" for row in rows), *tail]
    table(folder, "\n".join(lines) + "\n")


def one_bad(make: Callable[[Path], object], folder: Path, _: Path, name: str = "bad.nii.gz") -> None:
    """A manifest of one scan, whose file `make` writes."""
    make(folder / name)
    table(folder, f"scan,patient,path\nbad,p,{name}\n")


def bad(
    voxels: np.ndarray = RAMP, affine: np.ndarray | None = None, name: str = "bad.nii.gz", **header: Any
) -> Callable[..., None]:
    """One scan with invalid voxels, affine or header."""
    return partial(one_bad, lambda path: nifti(path, voxels, affine, **header), name=name)


def of_modality(modality: str, voxels: np.ndarray, folder: Path, _: Path) -> None:
    """One scan of a modality."""
    nifti(folder / "bad.nii.gz", voxels)
    table(folder, f"scan,patient,modality,path\nbad,p,{modality},bad.nii.gz\n")


def content(data: bytes, name: str = "bad.nii.gz") -> Callable[..., None]:
    """One scan whose file has these bytes."""
    return partial(one_bad, lambda path: path.write_bytes(data), name=name)


def manifest(text: str | bytes, name: str = "manifest.csv") -> Callable[..., None]:
    """A manifest and one valid scan, a.nii.gz."""

    def build(folder: Path, _: Path) -> None:
        nifti(folder / "a.nii.gz")
        table(folder, text, name)

    return build


def cut(path: Path) -> None:
    """A file whose second half is missing."""
    whole = nifti(path, np.random.default_rng(0).integers(0, 999, (9, 9, 9)).astype(np.int16)).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def flipped(path: Path) -> None:
    """A file with one wrong bit."""
    whole = bytearray(
        nifti(path, np.random.default_rng(0).integers(0, 999, (9, 9, 9)).astype(np.int16)).read_bytes()
    )
    whole[len(whole) // 2] ^= 4
    path.write_bytes(whole)


def with_nan() -> np.ndarray:
    """A ramp with a NaN and an infinite voxel."""
    voxels = RAMP.astype(np.float32)
    voxels[0, 0, 0], voxels[1, 1, 1] = np.nan, np.inf
    return voxels


def labelled(
    label: np.ndarray, affine: np.ndarray | None = None, names: str = '{"0": "air", "1": "liver"}'
) -> Callable[..., None]:
    """A valid image with this label."""

    def build(folder: Path, _: Path) -> None:
        nifti(folder / "a.nii.gz")
        nifti(folder / "l.nii.gz", label, affine)
        table(folder, "scan,patient,path,label\na,p,a.nii.gz,l.nii.gz\n")
        (folder / "labels.json").write_text(names)

    return build


def prepared_then(change: Callable[[Path], object]) -> Callable[..., None]:
    """A store that is prepared here and changed afterwards."""

    def build(folder: Path, _: Path) -> None:
        from medcl3d.preprocessing.options import PrepareOptions
        from medcl3d.preprocessing.prepare import prepare

        good(folder)
        prepare("csv", folder, folder / "out", options=PrepareOptions(workers=1))
        change(folder)

    return build


def config(
    change: Callable[[dict[str, Any]], object] = lambda _: None, store: Callable[[Path], object] | None = None
) -> Callable[..., None]:
    """A valid configuration of a small pretraining, with a change; `store` changes a copy of the store."""

    def build(folder: Path, tiny: Path) -> None:
        root = tiny
        if store is not None:
            root = folder / "store_copy"
            shutil.copytree(tiny, root)
            store(root)
        given = {
            "data": {"root": str(root), "patch_size": [16, 16, 16]},
            "pairs": {"overlapping_crops": {"min_iou": 0.2}},
            "views": "mri",
            "encoder": {"unet3d": {"channels": [4, 8], "strides": [1, 2]}},
            "objective": {"simclr": {"temperature": 0.1}},
            "train": {"steps": 2, "samples_per_step": 4},
            "out_dir": "run",
        }
        change(given)
        (folder / "c.yaml").write_text(yaml.safe_dump(given, sort_keys=False))

    return build


def appended(text: str) -> Callable[..., None]:
    """A valid configuration with more text at its end."""

    def build(folder: Path, tiny: Path) -> None:
        config()(folder, tiny)
        with (folder / "c.yaml").open("a") as file:
            file.write(text)

    return build


def text_of(text: str) -> Callable[..., None]:
    """A configuration with only this text."""
    return lambda folder, _: (folder / "c.yaml").write_text(text)


def put(*where: str, value: Any) -> Callable[..., None]:
    """A valid configuration with one field changed."""

    def change(given: dict[str, Any]) -> None:
        for key in where[:-1]:
            given = given[key]
        given[where[-1]] = value

    return config(change)


def pretrained(seen: Callable[[dict[str, Any], Path], dict[str, Any]]) -> Callable[..., None]:
    """A fine-tuning from an encoder whose pretraining data are `seen` of the split and the store."""

    def build(folder: Path, tiny: Path) -> None:
        split = json.loads((tiny / "split.json").read_text())
        (folder / "pre").mkdir()
        (folder / "pre" / "encoder.safetensors").write_bytes(b"not read before")
        (folder / "pre" / "encoder.json").write_text(json.dumps({"schema": 1, **seen(split, tiny)}))
        given = {
            "data": {"root": str(tiny), "patch_size": [16, 16, 16]},
            "task": "segmentation",
            "encoder": {"unet3d": {"channels": [4, 8], "strides": [1, 2]}},
            "train": {"steps": 2, "samples_per_step": 2},
            "init": "pre",
            "out_dir": "run",
        }
        (folder / "c.yaml").write_text(yaml.safe_dump(given))

    return build


def all_patients(split: dict[str, Any], _: Path) -> dict[str, Any]:
    """The patients of both sides."""
    return {"pretraining_patients": [*split["train"], *split["test"]]}


def all_scans_of_others(_: dict[str, Any], tiny: Path) -> dict[str, Any]:
    """The same scans under other ids."""
    from medcl3d.store.content_hashes import contents
    from medcl3d.store.store import Store

    return {"pretraining_patients": ["another"], "pretraining_content": contents(Store.open(tiny).scans)}


def edited(name: str, edit: Callable[[str], str]) -> Callable[[Path], object]:
    """A change of a text file of a store."""
    return lambda root: (root / name).write_text(edit((root / name).read_text()))


def outside(folder: Path, _: Path, path: str) -> None:
    """A manifest in its own folder, with a path that leads out of it."""
    nifti(folder / "secret.nii.gz")
    (folder / "in").mkdir()
    (folder / "in" / "link.nii.gz").symlink_to(folder / "secret.nii.gz")
    table(folder / "in", f"scan,patient,path\na,p,{path}\n")


def special(make: Callable[[Path], object]) -> Callable[..., None]:
    """A pipe, folder or other object in place of a file."""
    return partial(one_bad, make)


def copies(splits: Sequence[str] = ("", "")) -> Callable[..., None]:
    """The same content under two patients, and two other scans."""

    def build(folder: Path, _: Path) -> None:
        good(
            folder,
            [f"a,p,{splits[0]}", f"b,q,{splits[1]}", f"c,r,{splits[0]}", f"d,s,{splits[1]}"],
            "scan,patient,split",
        )
        shutil.copy(folder / "a.nii.gz", folder / "b.nii.gz")

    return build


def extreme_voxel(folder: Path, _: Path) -> None:
    """Two scans of the same image, one with values a million times as large and one extreme voxel."""
    rng = np.random.default_rng(0)
    image = rng.normal(100, 20, (12, 12, 12)).astype(np.float32)
    larger = image * 1e6
    larger[3, 3, 3] = 1e12
    nifti(folder / "a.nii.gz", image)
    nifti(folder / "b.nii.gz", larger)
    table(folder, "scan,patient,path\na,p,a.nii.gz\nb,q,b.nii.gz\n")


def dicom_series(**fields: Any) -> Callable[..., None]:
    """A folder of slices, each written by `tests.datasets.dicoms`."""

    def build(folder: Path, _: Path) -> None:
        from tests.datasets.dicoms import write_series

        write_series(folder / "in", **fields)

    return build


def shifted(mm: float, at: int = 3) -> Callable[[int], dict[str, Any]]:
    """Slices from number `at` on are shifted."""
    return lambda n: {"ImagePositionPatient": [10.0, 20.0, 30.0 + 3 * n + (mm if n >= at else 0)]}


def two_series(folder: Path, _: Path) -> None:
    """Slices of two series in one folder, with a DICOMDIR that points out of it."""
    from tests.datasets.dicoms import VOXELS, write_series, write_slice

    write_series(folder / "in", uid="1.2.1")
    write_series(folder / "in", VOXELS + 1, uid="1.2.2", PatientID="008")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns about writing it
        write_slice(
            folder / "in" / "DICOMDIR",
            VOXELS[0],
            sop_class="1.2.840.10008.1.3.10",
            ReferencedFileID=["..", "SECRET"],
        )


def slice_twice(folder: Path, _: Path) -> None:
    """A series with a copy of one of its files."""
    dicom_series()(folder, _)
    shutil.copy(next((folder / "in").iterdir()), folder / "in" / "copy")


def two_acquisitions(folder: Path, _: Path) -> None:
    """Ten slices under one UID: five positions, each of two acquisitions."""
    import numpy as np

    from tests.datasets.dicoms import VOXELS, write_series

    def change(n: int) -> dict[str, Any]:
        return {"AcquisitionNumber": 1 + n // 5, "ImagePositionPatient": [10.0, 20.0, 30.0 + 3 * (n % 5)]}

    write_series(folder / "in", np.concatenate([VOXELS, VOXELS + 1]), change=change)


def dose_in_mbq(folder: Path, _: Path) -> None:
    """A PET with everything that an SUV needs, except the correct unit of the dose."""
    from tests.datasets.dicoms import item, write_series

    tracer = item(RadionuclideTotalDose=370, RadionuclideHalfLife=6586.2, RadiopharmaceuticalStartTime="0900")
    times = {
        "SeriesDate": "20200131",
        "SeriesTime": "1000",
        "AcquisitionDate": "20200131",
        "AcquisitionTime": "1000",
    }
    about = {
        "Modality": "PT",
        "Units": "BQML",
        "CorrectedImage": ["ATTN", "DECY"],
        "DecayCorrection": "START",
        "PatientWeight": 80,
    }
    write_series(folder / "in", RadiopharmaceuticalInformationSequence=[tracer], **about, **times)


def no_number(folder: Path, _: Path) -> None:
    """Two series, one of which has text in place of a number."""
    from tests.datasets.dicoms import spoil, write_series

    write_series(folder / "in" / "good", uid="1.2.1")
    spoil(write_series(folder / "in" / "bad") / "IM4_129", "RescaleSlope", "DS", b"abc ")


def unknown_codec(folder: Path, _: Path) -> None:
    """A series with an unsupported transfer syntax."""
    import pydicom

    dicom_series()(folder, _)
    for path in (folder / "in").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
        dataset.PixelData = pydicom.encaps.encapsulate([dataset.PixelData])
        dataset["PixelData"].VR = "OB"
        dataset.save_as(path)


def cells(column: str, value: Callable[[int], str]) -> Callable[[Path], object]:
    """Replace a column of a store's manifest."""

    def edit(text: str) -> str:
        head, *rows = text.splitlines()
        at = head.split(",").index(column)
        edited_rows = [
            ",".join([*row[:at], value(i), *row[at + 1 :]])
            for i, row in enumerate(line.split(",") for line in rows)
        ]
        return "\n".join([head, *edited_rows]) + "\n"

    return edited("manifest.csv", edit)


def lonely(root: Path) -> None:
    """A store in which every scan has its own patient."""
    cells("patient", lambda i: f"p{i}")(root)
    num = len((root / "manifest.csv").read_text().splitlines()) - 1
    patients = [f"p{i}" for i in range(num)]
    (root / "split.json").write_text(
        json.dumps({"schema": 1, "seed": 0, "train": patients[1:], "test": patients[:1]})
    )


def both_sides(text: str) -> str:
    """A split with one patient on both sides."""
    split = json.loads(text)
    split["test"].append(split["train"][0])
    return json.dumps(split)

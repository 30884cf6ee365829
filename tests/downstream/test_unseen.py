"""Scans of a pretraining, prepared again under other ids, are refused as test scans."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml

from medcl3d.config.loading import parse
from medcl3d.core.errors import DataError
from medcl3d.downstream.evaluate import evaluate
from medcl3d.downstream.finetune import FinetuneConfig, assemble, finetune, summary
from medcl3d.preprocessing.options import prepare_options
from medcl3d.preprocessing.prepare import prepare
from medcl3d.pretraining.pretrain import pretrain
from tests.downstream.conftest import NUM_PATIENTS, write_balls

SHARED: dict[str, Any] = {"encoder": {"unet3d": {"channels": [4, 8], "strides": [1, 2]}}}
PATCH: dict[str, Any] = {"patch_size": [8, 8, 8], "smaller_than_patch": "pad"}
TRAIN = {"steps": 1, "samples_per_step": 2, "precision": "float32"}


@pytest.fixture(scope="module")
def seen(ball_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining on p1 to p5; do not write to it."""
    folder = tmp_path_factory.mktemp("seen")
    config = {
        **SHARED,
        "data": {"root": str(ball_root), **PATCH},
        "pairs": "overlapping_crops",
        "views": "mri",
        "objective": "simclr",
    }
    return pretrain(write(folder / "c.yaml", {**config, "train": TRAIN, "out_dir": str(folder / "run")}))


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def same(path: Path) -> None:
    """Leave the file unchanged."""


def anonymised(path: Path) -> None:
    """Change the header, not the values."""
    image = nibabel.load(path)
    image.header["descrip"] = "anonymised"
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), path)


def again(
    folder: Path,
    test: str = "0167",
    validation: str = "",
    change: Callable[[Path], None] = same,
    options: dict[str, Any] | None = None,
) -> Path:
    """The files of `ball_root` prepared again: case1 of q1 is scan1 of p1. test: numbers of test patients."""
    raw = folder / "raw"
    raw.mkdir(parents=True)
    write_balls(raw)
    rows = ["scan,patient,path,label,split"]
    for i in range(NUM_PATIENTS):
        change(raw / f"{i}.nii.gz")
        side = "test" if str(i) in test else "validation" if str(i) in validation else "train"
        rows.append(
            f"case{i},q{i},{i}.nii.gz,{i}_label.nii.gz,{'' if options and 'folds' in options else side}"
        )
    (raw / "manifest.csv").write_text("\n".join(rows) + "\n")
    given = prepare_options("csv", {"workers": 1, **(options or {})})
    prepare("csv", raw, folder / "out", fields=given.fields, options=given.options)
    return folder / "out"


def finetuning(root: Path, init: Path, **fields: Any) -> dict[str, Any]:
    data = {"root": str(root), **PATCH, **fields.pop("data", {})}
    return {
        **SHARED,
        "data": data,
        "task": "segmentation",
        "train": TRAIN,
        "init": str(init),
        "out_dir": "unused",
        **fields,
    }


def evaluation(root: Path, init: Path, **fields: Any) -> dict[str, Any]:
    data = {"root": str(root), **PATCH, **fields.pop("data", {})}
    return {
        **SHARED,
        "data": data,
        "init": str(init),
        "landmarks": {"structures": 1},
        "precision": "float32",
        "out_dir": "unused",
        **fields,
    }


def refused(folder: Path, root: Path, init: Path, words: str, **fields: Any) -> None:
    """Assert that finetune and evaluate refuse `init` with this message."""
    for command, made in ((finetune, finetuning), (evaluate, evaluation)):
        with pytest.raises(DataError, match=words):
            command(write(folder / "c.yaml", made(root, init, **fields)), check=True)


WAYS: dict[str, tuple[Callable[[Path], None], dict[str, Any], str]] = {
    "the same files": (same, {}, "the same file"),
    "prepared otherwise": (same, {"spacing_mm": [2, 2, 2], "store_as": "int16"}, "the same file"),
    "another header": (anonymised, {}, "the same volume in another file"),
    "another header, prepared otherwise": (
        anonymised,
        {"spacing_mm": [2, 2, 2]},
        "the same volume in another file",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_scans_of_a_pretraining_are_refused_as_test_scans_under_any_id(
    seen: Path, tmp_path: Path, way: str
) -> None:
    change, options, match = WAYS[way]
    root = again(tmp_path / "again", change=change, options=options)
    found = rf"case1 of q1 \({match}\)"
    words = rf"used 1 of the 4 test scans of {root} under other patient ids: {found}; pretrain without them"
    refused(tmp_path, root, seen, words)


def test_a_store_without_hashes_of_values_uses_those_of_stored_volumes(seen: Path, tmp_path: Path) -> None:
    root = again(tmp_path / "again", change=anonymised)
    for path in (root / "store").glob("*.json"):
        about = json.loads(path.read_text())
        del about["voxels_sha256"]
        path.write_text(json.dumps(about))
    refused(tmp_path, root, seen, r"case1 of q1 \(the same stored volume\)")


@pytest.mark.parametrize("measured_on", ["test", "validation"])
def test_both_test_and_validation_scans_are_checked(seen: Path, tmp_path: Path, measured_on: str) -> None:
    root = again(tmp_path / "again", test="06", validation="27")
    refused(tmp_path, root, seen, r"used 1 of the 4 test scans .*case2 of q2", measured_on=measured_on)


def test_test_scans_of_every_fold_are_checked(seen: Path, tmp_path: Path) -> None:
    root = again(tmp_path / "again", options={"folds": 2})
    for number, fold in enumerate(json.loads((root / "split.json").read_text())["folds"]):
        of_seen = [patient for patient in fold if patient in ("q1", "q2", "q3", "q4", "q5")]
        words = "".join(f".*case{patient[1]} of {patient}" for patient in of_seen)
        refused(
            tmp_path, root, seen, rf"used {len(of_seen)} of the 4 test scans{words}", data={"fold": number}
        )


def test_other_scans_are_accepted(seen: Path, tmp_path: Path) -> None:
    root = again(tmp_path / "again", test="067")  # also test scans of the folder of the pretraining
    parts = assemble(parse(finetuning(root, seen), FinetuneConfig, "test"))
    assert parts.transferred is not None and len(parts.transferred.notes) == 1
    evaluate(write(tmp_path / "c.yaml", evaluation(root, seen)), check=True)


def test_weights_without_content_hashes_are_accepted_with_a_note(
    seen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads((seen / "encoder.json").read_text())
    assert len(before["pretraining_content"]) == 5 and list(before)[-1] == "pretraining_content", (
        "the long list is last"
    )
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "encoder.safetensors").write_bytes((seen / "encoder.safetensors").read_bytes())
    del before["pretraining_content"]
    (tmp_path / "old" / "encoder.json").write_text(json.dumps(before))
    root, words = (
        again(tmp_path / "again"),
        "encoder.json: lists the patients of pretraining but not the content of their scans",
    )
    assert words in summary(assemble(parse(finetuning(root, tmp_path / "old"), FinetuneConfig, "test")))
    evaluate(write(tmp_path / "c.yaml", evaluation(root, tmp_path / "old")), check=True)
    assert words in capsys.readouterr().out

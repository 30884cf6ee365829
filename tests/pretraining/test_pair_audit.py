"""Pair audits equal slow loops over pairs, and give known values for pairs that are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import save_file

from medcl3d.config.loading import parse
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.objectives.dense import point_keys
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.pair_audit import FEW_BATCHES, PAIR_AUDIT, audit, audit_of
from medcl3d.pretraining.pair_counts import shared
from medcl3d.pretraining.pair_labels import Classes, Structures
from medcl3d.pretraining.parts import Pretraining, assemble
from medcl3d.pretraining.pretrain import pretrain
from medcl3d.sampling.augment import make_views

BATCHES = 2


def configuration(store: Path, pairs: Any, objective: str = "simclr") -> dict[str, Any]:
    return {
        "data": {"root": str(store), "patch_size": [16] * 3},
        "pairs": pairs,
        "views": "mri",
        "encoder": {"unet3d": {"channels": [4, 8], "strides": [1, 2]}},
        "objective": objective,
        "train": {"steps": 4, "samples_per_step": 6},
        "out_dir": "unused",
    }


def pretraining(store: Path, pairs: Any, objective: str = "simclr") -> Pretraining:
    return assemble(parse(configuration(store, pairs, objective), PretrainConfig, "test"))


def in_common(own: np.ndarray, theirs: np.ndarray) -> float:
    """The definition: structures of the first item that the second one shares."""
    total = float(own.sum())
    return sum(min(float(a), float(b)) for a, b in zip(own, theirs, strict=True)) / total


def slow_audit(parts: Pretraining) -> tuple[float, float]:
    """Purity and false negatives of views, pair by pair, with compositions counted voxel by voxel."""
    weights = np.zeros(4)
    for step in range(BATCHES):
        raw = parts.dataset()[step]
        compositions = []
        for view in raw.main.views:
            labels = parts.store.read_label(int(parts.scans.rows[view.scan]), view.box)
            values = [value for value in sorted(parts.store.label_names) if value > 0]
            compositions.append(np.array([np.mean(labels == value) for value in values], dtype=np.float32))
        relation = parts.learner.relating.relate(raw.keys, raw.keys, None)
        positive, negative = relation.positive.double().numpy(), relation.negative.double().numpy()
        for i, own in enumerate(compositions):
            if own.sum() == 0:
                continue
            for j, theirs in enumerate(compositions):
                common = in_common(own, theirs)
                if positive[i].sum() > 0:
                    weight = min(1.0, positive[i].sum()) * positive[i, j] / positive[i].sum()
                    weights[:2] += weight * common, weight
                if negative[i].sum() > 0:
                    weight = negative[i, j] / negative[i].sum()
                    weights[2:] += weight * common, weight
    return weights[0] / weights[1], weights[2] / weights[3]


@pytest.mark.parametrize(
    "pairs", [{"overlapping_crops": {"min_iou": 0.2, "max_iou": 0.6}}, {"slice_position": {"axis": 2}}]
)
def test_an_audit_of_views_equals_a_loop_over_pairs(tiny_store: Path, pairs: Any) -> None:
    parts = pretraining(tiny_store, pairs)
    found = audit_of(parts, Structures(parts.store), batches=BATCHES)
    purity, false_negatives = slow_audit(parts)
    assert found.purity is not None and found.false_negatives is not None
    assert found.purity.mean == pytest.approx(purity, abs=1e-6) and 0 < purity < 1
    assert found.false_negatives.mean == pytest.approx(false_negatives, abs=1e-6)


def test_an_audit_of_points_equals_the_labels_at_their_voxels(tiny_store: Path) -> None:
    parts = pretraining(
        tiny_store, {"body_position": {"alpha": 0.8, "sigma_mm": 20, "num_points": 8}}, "dense"
    )
    found = audit_of(parts, Structures(parts.store), batches=1)
    raw = parts.dataset()[0]
    batch = make_views(raw, parts.learner.recipe)
    assert raw.points is not None
    total = same = 0.0
    keys = point_keys(batch.main, raw.points)
    keys = keys[torch.isfinite(keys.position_mm).all(1).nonzero().flatten()]
    relation = parts.learner.relating.relate(keys, keys, None)
    labels = []
    for scan, mm in zip(keys.scan.tolist(), keys.position_mm.numpy(), strict=True):
        row = int(parts.scans.rows[scan])
        voxel = np.linalg.inv(parts.store.collection.affines[row]) @ np.append(mm, 1)
        labels.append(int(parts.store.read_label(row)[tuple(np.rint(voxel[:3]).astype(int))]))
    for i in range(len(keys)):
        row_sum = float(relation.positive[i].double().sum())
        if labels[i] == 0 or row_sum == 0:
            continue
        for j in range(len(keys)):
            weight = min(1.0, row_sum) * float(relation.positive[i, j]) / row_sum
            total += weight
            same += weight * (labels[i] == labels[j])
    assert found.items == "points" and found.purity is not None
    assert found.purity.mean == pytest.approx(same / total, abs=1e-5)
    assert 0 < found.weight_by_place["other patients"] < 1


def test_the_same_crop_is_pure_and_a_class_is_pure_within_a_patient(tiny_store: Path) -> None:
    parts = pretraining(tiny_store, "augmented_views")
    found = audit_of(parts, Structures(parts.store), batches=BATCHES)
    assert found.purity is not None and found.purity.mean == pytest.approx(1)
    table = parts.store.collection.table
    patients = table["patient"].astype(str)
    half = patients.isin(sorted(set(patients))[::2])
    classes = Classes("half", pd.Series(np.where(half, "a", "b")))
    by_class = audit_of(parts, classes, batches=BATCHES)
    assert by_class.purity is not None and by_class.purity.mean == pytest.approx(1)
    assert by_class.false_negatives is not None and 0.2 < by_class.false_negatives.mean < 0.8
    assert set(by_class.per_structure) <= {"a", "b"}


def test_an_unknown_class_is_not_counted(tiny_store: Path) -> None:
    parts = pretraining(tiny_store, "augmented_views")
    values = pd.Series(["a", "b"] * len(parts.store))[: len(parts.store)]
    values[values == "b"] = np.nan
    found = audit_of(parts, Classes("half", values), batches=BATCHES)
    assert found.false_negatives is not None and found.false_negatives.mean == pytest.approx(1)


def test_effective_numbers_count_equal_weights(tiny_store: Path) -> None:
    parts = pretraining(tiny_store, {"augmented_views": {"num_views": 3}})
    found = audit_of(parts, Structures(parts.store), batches=BATCHES)
    assert found.positives == pytest.approx(2)
    assert found.negatives == pytest.approx(3 * 6 - 3)


def test_what_items_have_in_common_is_relative_to_the_first() -> None:
    items = torch.tensor([[0.5, 0.0], [0.25, 0.25], [0.0, 0.0], [torch.nan, torch.nan]])
    found = shared(items, items)
    torch.testing.assert_close(found[:2, :3], torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0]]))
    assert torch.isnan(found[2:]).all() and torch.isnan(found[:, 3]).all()


@pytest.mark.parametrize(
    ("pairs", "objective"),
    [
        ({"nearest_neighbours": {"k": 2, "queue_size": 16}}, "simclr"),
        ({"hard_negatives": {"concentration": 2.0}}, "simclr"),
        ({"hard_negatives": {"concentration": 2.0, "inner": "voxel_correspondence"}}, "dense"),
    ],
)
def test_pairs_of_features_are_audited_with_an_encoder(
    tiny_store: Path, pairs: dict[str, Any], objective: str
) -> None:
    parts = pretraining(tiny_store, pairs, objective)
    without = audit_of(parts, Structures(parts.store), batches=4)
    assert any("depend on a whole batch" in note for note in without.notes)
    found = audit_of(parts, Structures(parts.store), parts.learner.network.eval(), batches=4)
    assert not found.notes
    if "nearest_neighbours" in pairs:
        assert found.positives - without.positives > 0.5
    else:
        assert found.negatives < without.negatives - 0.1


def test_the_command_writes_figures_and_pairs_of_patients(tiny_store: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(configuration(tiny_store, {"slice_position": {"axis": 2}})))
    found = audit(path, batches=BATCHES, out=tmp_path / "audit.json")
    assert found is not None and found.purity is not None
    written = json.loads((tmp_path / "audit.json").read_text())
    assert written["purity"]["mean"] == found.purity.mean and written["items"] == "views"
    pairs = pd.read_csv(tmp_path / "audit.csv")
    weight = pairs["positive_weight"]
    mean = (pairs["purity"].fillna(0) * weight).sum() / weight.sum()
    assert mean == pytest.approx(found.purity.mean) and len(pairs) > len(set(pairs["patient"]))
    assert any("purity" in line for line in found.lines())


def test_an_audit_that_cannot_be_made_is_refused(tiny_store: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(configuration(tiny_store, "augmented_views")))
    with pytest.raises(ConfigError, match=r"--by = gender: .* column .*patient"):
        audit(path, by="gender")
    with pytest.raises(ConfigError, match="--batches = 0"):
        audit(path, batches=0)
    with pytest.raises(ConfigError, match=r"--out .*\.json"):
        audit(path, out=tmp_path / "audit.txt")
    save_file({"x": torch.zeros(1)}, tmp_path / "encoder.safetensors")
    with pytest.raises((ConfigError, DataError), match=r"encoder\.json"):
        audit(path, encoder=tmp_path)
    assert audit(path, check=True, out=tmp_path / "audit.json") is None
    assert not (tmp_path / "audit.json").exists()


@pytest.mark.parametrize(
    ("objective", "pairs"),
    [("simclr", "overlapping_crops"), ("simclr", "nearest_neighbours"), ("mae", "augmented_views")],
)
def test_a_pretraining_writes_the_audit_of_its_pairs(
    tiny_store: Path, tmp_path: Path, objective: str, pairs: str
) -> None:
    """Equal to the command's audit of as many batches; MAE has no pairs."""
    config = {
        "data": {"root": str(tiny_store), "patch_size": [16, 16, 16], "smaller_than_patch": "pad"},
        "pairs": pairs,
        "views": "mri",
        "encoder": {"unet3d": {"channels": [4, 8], "strides": [1, 2]}},
        "objective": objective,
        "train": {"steps": 2, "samples_per_step": 4, "precision": "float32"},
        "out_dir": str(tmp_path / "run"),
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    pretrain(file)
    written = tmp_path / "run" / PAIR_AUDIT
    if objective == "mae":
        assert not written.exists()
        return
    encoder = tmp_path / "run" if pairs == "nearest_neighbours" else None
    audited = audit(file, batches=FEW_BATCHES, encoder=encoder)
    assert audited is not None
    assert json.loads(written.read_text()) == json.loads(json.dumps(audited.as_dict()))

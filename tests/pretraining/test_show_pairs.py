"""The pictures show the boxes, points and counts of the strategy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.io import imread

from medcl3d.config.loading import parse
from medcl3d.core.geometry import Box, triple
from medcl3d.core.relation import Relation
from medcl3d.pairs.boxes import iou
from medcl3d.preprocessing.options import prepare_options
from medcl3d.preprocessing.prepare import prepare
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.pair_measures import facts_of
from medcl3d.pretraining.parts import Pretraining, assemble
from medcl3d.pretraining.pictures import (
    ATTRACTED,
    IGNORED,
    REPELLED,
    colours_of,
    picture_of_pairs,
    picture_of_relation,
)
from medcl3d.pretraining.show_pairs import show_pairs
from medcl3d.sampling.augment import make_views
from medcl3d.store.store import Store


def pretraining(
    store: Path, pairs: Any, objective: str = "simclr", patch: int = 16, samples: int = 8, views: Any = "mri"
) -> Pretraining:
    config = {
        "data": {"root": str(store), "patch_size": [patch] * 3},
        "pairs": pairs,
        "views": views,
        "encoder": {"unet3d": {"channels": [4, 8], "strides": [1, 2]}},
        "objective": objective,
        "train": {"steps": 4, "samples_per_step": samples},
        "out_dir": "unused",
    }
    return assemble(parse(config, PretrainConfig, "test"))


def test_boxes_overlap_as_configured_and_counts_match_the_relation(tiny_store: Path) -> None:
    parts = pretraining(tiny_store, {"overlapping_crops": {"min_iou": 0.3, "max_iou": 0.6}})
    raw = parts.dataset()[0]
    facts = facts_of(raw, parts.learner.relating, parts.learner.recipe)
    drawn = [
        iou(first.box, second.box)
        for first, second in zip(raw.main.views[::2], raw.main.views[1::2], strict=True)
    ]
    assert (
        np.allclose(np.sort(facts.spread["IoU"]), np.sort(drawn)) and min(drawn) >= 0.3 and max(drawn) <= 0.6
    )
    relation = parts.strategy.relate(raw.keys, raw.keys, None)
    assert torch.equal(facts.relation.positive, relation.positive) and torch.equal(
        facts.relation.negative, relation.negative
    )
    assert facts.counts["positives_per_anchor"] == pytest.approx(float(relation.positive.sum(1).mean()))
    assert facts.counts["effective_negatives"] == pytest.approx(float(relation.negative.sum(1).mean()))
    assert facts.names[:3] == ("0.0", "0.1", "1.0") and len(facts.names) == 16
    assert any("effective negatives" in line for line in facts.lines())


def test_days_between_visits_are_measured(tiny_store: Path) -> None:
    parts = pretraining(tiny_store, {"longitudinal": {}})
    raw = parts.dataset()[0]
    spread = facts_of(raw, parts.learner.relating, parts.learner.recipe).spread
    days = parts.scans.collection.columns["session_days"]
    expected = [
        abs(days[a.scan] - days[b.scan])
        for a, b in zip(raw.main.views[::2], raw.main.views[1::2], strict=True)
    ]
    assert np.allclose(np.sort(spread["days between visits"]), np.sort(expected)) and min(expected) > 0


def test_colours_show_attraction_and_repulsion() -> None:
    positive = torch.tensor([[0.0, 1.0, 0.5], [0, 0, 0], [0, 0, 0]])
    negative = torch.tensor([[0.0, 0.0, 0.5], [1, 0, 0], [3, 0, 0]])

    def hexed(pixel: np.ndarray) -> str:
        return "#" + "".join(f"{round(float(part) * 255):02x}" for part in pixel)

    for at_most_one in (negative.clamp(max=1), negative):
        colours = colours_of(Relation(positive, at_most_one))
        assert (
            hexed(colours[0, 0]) == IGNORED
            and hexed(colours[0, 1]) == ATTRACTED
            and hexed(colours[1, 1]) == IGNORED
        )
        assert hexed(colours[2, 0]) == REPELLED, "the strongest repulsion of a batch has the full colour"


@pytest.mark.parametrize(
    "pairs", ["augmented_views", {"multi_crop": {"local_size": [8, 8, 8]}}, {"same_patient": {}}]
)
def test_pictures_show_every_scan_and_view(tiny_store: Path, pairs: Any) -> None:
    parts = pretraining(tiny_store, pairs)
    raw = parts.dataset()[0]
    one, three = (
        picture_of_pairs(parts.store, parts.scans, raw, parts.learner.recipe, number) for number in (1, 3)
    )
    assert one.dtype == np.uint8 and one.shape[2] == 3 and one.size < three.size
    assert one.std() > 20, "the picture is not blank"
    assert picture_of_relation(facts_of(raw, parts.learner.relating, parts.learner.recipe)).std() > 20


def test_the_page_is_self_contained(
    tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "visits.yaml").write_text(f"""
data: {{root: {tiny_store}, patch_size: [16, 16, 16]}}
pairs: same_patient
views: mri
encoder: {{unet3d: {{channels: [4, 8], strides: [1, 2]}}}}
objective: simclr
train: {{steps: 4, samples_per_step: 4}}
out_dir: unused
""")
    facts = show_pairs(tmp_path / "visits.yaml", (), tmp_path / "out" / "pairs.png", page=True)
    assert imread(tmp_path / "out" / "pairs.png").shape[2] in (3, 4)
    page = (tmp_path / "out" / "pairs.html").read_text()
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 2 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert len(re.findall(r'<img alt="[^"]+"', page)) == 2 and "http" not in page
    assert "Pairs of visits" in page and "pairs: same_patient" in page
    for line in facts.lines():
        name, value = line.rsplit(maxsplit=1)
        assert (
            f"<td>{name.strip()}</td><td>{value}</td>" in page.replace(" </td>", "</td>").replace("  ", "")
            or value in page
        )
    assert "effective negatives" in capsys.readouterr().out


@pytest.fixture(scope="module")
def ixi(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ixi") / "store"
    given = prepare_options("bids", {"workers": 2})
    prepare("bids", shared_data / "ixi40", out, fields=given.fields, options=given.options)
    return out


def structures(store: Store, scan: int, voxels: np.ndarray) -> np.ndarray:
    """Labels at voxel coordinates, 0 outside."""
    index = np.round(voxels).astype(int)
    return np.array([store.read_label(scan, Box(triple(voxel), (1, 1, 1)))[0, 0, 0] for voxel in index])


def test_corresponding_dots_are_on_the_same_structure(ixi: Path) -> None:
    """Map drawn dots to the label map: both views show the same structure, far more often than by chance."""
    parts = pretraining(ixi, {"voxel_correspondence": {"num_points": 16}}, "dense", patch=32, samples=12)
    raw = parts.dataset()[0]
    batch = make_views(raw, parts.learner.recipe)
    assert batch.points is not None
    found = []
    for row, view in enumerate(raw.main.views):
        scan = int(parts.scans.rows[view.scan])
        to_voxel = torch.linalg.inv(batch.main.affine[row])
        drawn = batch.points.position_mm[row // 2] @ to_voxel[:3, :3].T + to_voxel[:3, 3]
        # From the pixel of the view to the scan, through the affine of the view.
        world = drawn @ batch.main.affine[row, :3, :3].T + batch.main.affine[row, :3, 3]
        affine = parts.scans.collection.affines[view.scan]
        found.append(
            structures(
                parts.store, scan, np.linalg.solve(affine[:3, :3], (world.numpy() - affine[:3, 3]).T).T
            )
        )
        assert ((drawn >= -0.5) & (drawn <= 31.5))[batch.points.valid[row // 2]].all(), (
            "a dot is inside its view"
        )
    first, second = np.array(found[::2]), np.array(found[1::2])
    valid = batch.points.valid.numpy()
    agree = (first == second)[valid].mean()
    rng = np.random.default_rng(0)
    chance = np.mean([(first[valid] == rng.permutation(second[valid])).mean() for _ in range(20)])
    assert agree > 0.99 and agree > chance + 0.2, (agree, chance)


def test_near_points_of_two_brains_are_on_the_same_structure_more_often_than_by_chance(ixi: Path) -> None:
    """body_position attracts points of patients that are near in body coordinates, without registration."""
    parts = pretraining(
        ixi,
        {"body_position": {"num_points": 64, "sigma_mm": 4, "alpha": 1}},
        "dense",
        patch=32,
        samples=24,
        views="none",
    )
    raw = parts.dataset()[0]
    assert raw.points is not None
    scans = np.array([view.scan for view in raw.main.views[::2]])
    labels, bodies, patients = [], [], []
    for sample, scan in enumerate(scans):
        affine = parts.scans.collection.affines[scan]
        voxels = np.linalg.solve(affine[:3, :3], (raw.points.position_mm[sample].numpy() - affine[:3, 3]).T).T
        valid = raw.points.valid[sample].numpy()
        labels.append(structures(parts.store, int(parts.scans.rows[scan]), voxels)[valid])
        bodies.append(raw.points.body_mm[sample].numpy()[valid])
        patients.append(np.full(valid.sum(), scan))
    label, body, patient = np.concatenate(labels), np.concatenate(bodies), np.concatenate(patients)
    distance = np.linalg.norm(body[:, None] - body, axis=-1)
    pairs = np.triu((patient[:, None] != patient) & (label[:, None] > 0) & (label > 0), 1)
    agree = label[:, None] == label
    near = agree[pairs & (distance < 8)]
    assert len(near) > 50
    assert near.mean() > 2 * agree[pairs].mean(), (near.mean(), agree[pairs].mean())

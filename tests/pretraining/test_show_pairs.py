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
from medcl3d.pairs.boxes import iou, iou_mm
from medcl3d.preprocessing.options import prepare_options
from medcl3d.preprocessing.prepare import prepare
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.pair_measures import KINDS, distance_of_pairs, facts_of
from medcl3d.pretraining.pair_partners import Partner, chosen_anchors, partners_of
from medcl3d.pretraining.parts import Pretraining, assemble
from medcl3d.pretraining.pictures import (
    COLOURS,
    PLAIN,
    colours_of,
    picture_of_pairs,
    picture_of_relation,
    reason_text,
)
from medcl3d.pretraining.show_pairs import show_pairs
from medcl3d.pretraining.shown_batch import ShownBatch, shown_batch
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
    assert facts.lines() == [
        "16 views: 8 samples, 4 patients",
        "of 15 others, an anchor on average",
        "  attracts: 1",
        "  repels: 14",
        "anchors without a positive: 0",
    ]


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


def test_only_what_differs_from_plain_repulsion_has_a_colour() -> None:
    positive = torch.tensor([[0.0, 1.0, 0.5], [0, 0, 0], [0, 0, 0]])
    negative = torch.tensor([[0.0, 0.0, 0.5], [1, 0, 0], [3, 0, 1]])
    budget = torch.full((3, 3), torch.nan)
    budget[1, 1] = 0.2

    def hexed(pixel: np.ndarray) -> str:
        return "#" + "".join(f"{round(float(part) * 255):02x}" for part in pixel)

    colours = colours_of(Relation(positive, negative, budget))
    found = [[hexed(pixel) for pixel in row] for row in colours]
    assert found[0][:2] == [COLOURS["ignore"], COLOURS["attract"]]
    assert found[1] == [PLAIN, COLOURS["budget"], COLOURS["ignore"]]
    assert found[2] == [COLOURS["repel"], COLOURS["ignore"], PLAIN], "M > 1 differs from M = 1"
    assert np.allclose(colours[0, 2], (colours[0, 1] + colours[2, 2]) / 2), "half attraction is paler"


def shown(store: Path, pairs: Any, **options: Any) -> ShownBatch:
    return shown_batch(pretraining(store, pairs, **options))


def partners(batch: ShownBatch) -> list[tuple[int, Partner]]:
    return [
        (row, partner) for row in range(len(batch.facts.keys)) for partner in partners_of(batch.facts, row)
    ]


@pytest.mark.parametrize(
    "pairs", ["augmented_views", {"multi_crop": {"local_size": [8, 8, 8]}}, {"same_patient": {}}]
)
def test_pictures_show_anchors_of_different_samples(tiny_store: Path, pairs: Any) -> None:
    batch = shown(tiny_store, pairs)
    one, two = (picture_of_pairs(batch, number) for number in (1, 2))
    assert one.dtype == np.uint8 and one.shape[2] == 3 and one.size < two.size
    assert one.std() > 20, "the picture is not blank"
    samples = batch.facts.keys.sample[chosen_anchors(batch.facts, 3, batch.brightness())]
    assert len(set(samples.tolist())) == 3
    assert picture_of_relation(batch.facts).std() > 10


def test_partners_are_the_most_attracted_and_the_nearest_negatives(tiny_store: Path) -> None:
    batch = shown(tiny_store, {"metadata_kernel": {"columns": {"age": 5}}})
    facts, relation = batch.facts, batch.facts.relation
    distance = distance_of_pairs(facts.keys, facts.keys, "views")
    seen = set()
    for row, partner in partners(batch):
        kind, column = partner.kind, partner.column
        seen.add(kind)
        assert (facts.keys.sample[row], facts.keys.view[row]) != (
            facts.keys.sample[column],
            facts.keys.view[column],
        )
        weight = relation.positive if kind == "attract" else relation.negative
        assert weight[row, column] > 0
    assert seen == {"attract", "repel"}
    plain = shown(tiny_store, "overlapping_crops").facts
    distance = distance_of_pairs(plain.keys, plain.keys, "views")
    for row in range(len(plain.keys)):
        first = next(p.column for p in partners_of(plain, row) if p.kind == "repel")
        others = (plain.relation.negative[row] > 0).nonzero().flatten()
        assert distance[row, first] == distance[row, others].min()


def test_reasons_are_those_of_the_signal_columns(tiny_store: Path) -> None:
    def texts(pairs: Any, kind: str, **options: Any) -> tuple[ShownBatch, list[tuple[int, int, str]]]:
        batch = shown(tiny_store, pairs, **options)
        found = [(row, p) for row, p in partners(batch) if p.kind == kind]
        return batch, [(row, p.column, reason_text(batch, row, p)) for row, p in found]

    batch, found = texts({"longitudinal": {}}, "attract")
    days = batch.facts.keys.session_days
    assert found and all(
        text.startswith(f"the same patient, {abs(days[row] - days[column]):g} days")
        for row, column, text in found
    )
    batch, found = texts("overlapping_crops", "attract")
    overlap = iou_mm(batch.facts.keys, batch.facts.keys)
    assert all(text == f"the same scan, IoU {overlap[row, column]:.2f}" for row, column, text in found)
    batch, found = texts({"metadata_kernel": {"columns": {"age": 5, "sex": "equal"}}}, "repel")
    table = batch.parts.scans.collection.table
    assert found
    for row, column, text in found:
        one, other = (table.iloc[int(batch.facts.keys.scan[item])] for item in (row, column))
        for name, values in (("age", (one.age, other.age)), ("sex", (one.sex, other.sex))):
            shown_values = [f"{round(float(v), 1):g}" if name == "age" else v for v in values]
            assert f"{name} {' / '.join(shown_values)}" in text or one.patient == other.patient
    batch, found = texts({"body_position": {"alpha": 1, "sigma_mm": 40}}, "attract", objective="dense")
    assert any(text == "the same point" for _, _, text in found)
    across = [(row, column, text) for row, column, text in found if text.startswith("another patient")]
    body = batch.facts.keys.body
    assert across and all(
        text.endswith(f"{(body[row] - body[column]).norm():.0f} mm in body coordinates")
        for row, column, text in across
    )


def test_points_are_drawn_where_they_are_in_the_scan(tiny_store: Path) -> None:
    batch = shown(tiny_store, "voxel_correspondence", objective="dense")
    one, other = batch.item(0), batch.item(partners_of(batch.facts, 0)[0].column)
    assert one.is_point and one.scan == other.scan and np.allclose(one.place, other.place)
    assert not np.allclose(one.voxel, other.voxel), "two views"
    for item in (one, other):
        assert (item.voxel > -0.5).all() and (item.voxel < np.array(item.voxels.shape) - 0.5).all()
        start, stop = np.array(item.box.start) - 0.5, np.array(item.box.stop) - 0.5
        assert ((item.place >= start) & (item.place <= stop)).all()


def test_strategies_of_features_show_what_they_change(tiny_store: Path) -> None:
    inner = shown(tiny_store, "overlapping_crops").facts
    parts = pretraining(tiny_store, {"hard_negatives": {"inner": "overlapping_crops"}})
    parts.learner.train()
    hard = shown_batch(parts).facts
    assert torch.equal(hard.keys.center_mm, inner.keys.center_mm), "the same crops"
    assert hard.relation.negative.max() > 1.5 and inner.relation.negative.max() == 1
    assert parts.learner.network.training

    parts = pretraining(tiny_store, {"nearest_neighbours": {"queue_size": 32}})
    batch = shown_batch(parts)
    kinds = batch.facts.kinds()
    items = len(batch.facts.keys)
    assert batch.facts.queued is not None and ((kinds[:, items:] == KINDS.index("attract")).sum(1) == 1).all()
    queued = [(row, p) for row, p in partners(batch) if p.column >= items and p.kind == "attract"]
    assert queued and all(reason_text(batch, row, p).startswith("an earlier batch, ") for row, p in queued)
    assert len(batch.batches) == 2 and batch.item(queued[0][1].column).voxels.ndim == 3
    support = parts.learner.relating.support
    assert support is not None and int(support.count) == 0, "the queue of the training is unchanged"


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
    assert "Pairs of visits" in page and "jitter_mm: 0.0" in page, "the configuration has its defaults"
    assert facts is not None and all(line in page for line in facts.lines())
    assert facts.lines()[0] in capsys.readouterr().out


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

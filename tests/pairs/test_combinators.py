"""Combinators: sum, product and exclusion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medcl3d.config.field_types import Choice
from medcl3d.config.loading import load, parse
from medcl3d.config.plain import plain
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.objectives.dense import point_keys
from medcl3d.pairs import PAIRS
from medcl3d.pairs.combinators import Product, Sum
from medcl3d.pairs.exclude import Exclude
from medcl3d.pairs.traits import num_points_of
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.parts import assemble
from tests.pairs.collections import make_collection
from tests.pairs.test_strategies import batch_of_views
from tests.pretraining.test_points_of_samples import parts_of

OVERLAP, PATIENT = Choice("overlapping_crops", {"same_scan": "negative"}), Choice("same_patient")


def test_a_sum_weights_relations_and_draws_by_weight() -> None:
    collection = make_collection(0, 6)
    strategy = Sum(parts=(OVERLAP, PATIENT), weights=(1.0, 3.0))
    keys = batch_of_views(strategy, collection, 0)
    parts = [part.relate(keys, keys, None) for part in strategy.strategies]
    relation = strategy.relate(keys, keys, None)
    torch.testing.assert_close(relation.positive, 0.25 * parts[0].positive + 0.75 * parts[1].positive)
    torch.testing.assert_close(relation.negative, 0.25 * parts[0].negative + 0.75 * parts[1].negative)
    rng = np.random.default_rng(0)
    drawn = [strategy.sample(collection, 0, rng) for _ in range(400)]
    assert np.mean([first.scan != second.scan for first, second in drawn]) == pytest.approx(0.75, abs=0.07)
    assert strategy.traits.signal_columns == ("patient",)


def test_a_product_multiplies_and_keeps_ignored_pairs() -> None:
    collection = make_collection(0, 6)
    strategy = Product(parts=(PATIENT, Choice("overlapping_crops")))
    keys = batch_of_views(strategy, collection, 0)
    patient, overlap = (part.relate(keys, keys, None) for part in strategy.strategies)
    relation = strategy.relate(keys, keys, None)
    torch.testing.assert_close(relation.positive, patient.positive * overlap.positive)
    ignored = ((patient.positive == 0) & (patient.negative == 0)) | (
        (overlap.positive == 0) & (overlap.negative == 0)
    )
    assert (relation.negative[ignored] == 0).all() and (
        relation.negative[~ignored] == 1 - relation.positive[~ignored]
    ).all()


def test_combinations_of_points_relate_points(tiny_store: Path) -> None:
    """Their points are the most of the parts; a product keeps the positives of one scan that both attract."""
    points = {"num_points": 8}
    parts = [{"voxel_correspondence": points}, {"body_position": {"alpha": 1, "sigma_mm": 30}}]
    made = parts_of(tiny_store, {"sum": {"parts": parts, "weights": [1, 3]}}, "dense")
    batch = made.dataset()[0]
    assert batch.points is not None
    keys = point_keys(batch.main, batch.points)
    assert keys.point.max() + 1 == num_points_of(made.strategy.strategies[1]) > points["num_points"]  # type: ignore[attr-defined]
    known, near = (part.relate(keys, keys, None) for part in made.strategy.strategies)  # type: ignore[attr-defined]
    relation = made.strategy.relate(keys, keys, None)
    torch.testing.assert_close(relation.positive, 0.25 * known.positive + 0.75 * near.positive)
    torch.testing.assert_close(relation.negative, 0.25 * known.negative + 0.75 * near.negative)
    other = keys.patient[:, None] != keys.patient
    assert relation.positive[other].max() > 0.1  # of body_position alone
    both = parts_of(tiny_store, {"product": {"parts": parts}}, "dense").strategy.relate(keys, keys, None)
    assert (both.positive[other] == 0).all() and both.positive.max() == 1
    assert torch.equal(both.positive, known.positive * near.positive)


def test_points_of_a_combination_have_one_region() -> None:
    edges = [Choice("region_points", {"regions": "supervoxels", "supervoxel_mm": edge}) for edge in (10, 20)]
    with pytest.raises(ConfigError, match="the parts of a sum have different regions"):
        _ = Sum(parts=tuple(edges)).strategies


def test_exclusion_removes_only_negatives_of_one_value() -> None:
    collection = make_collection(0, 8)
    strategy = Exclude(inner=OVERLAP, by="modality")
    keys = batch_of_views(strategy, collection, 0)
    inner, relation = strategy.strategies[0].relate(keys, keys, None), strategy.relate(keys, keys, None)
    same = keys.modality[:, None] == keys.modality
    assert same.any() and (~same).any()
    assert (relation.negative[same] == 0).all()
    assert torch.equal(relation.negative[~same], inner.negative[~same]) and torch.equal(
        relation.positive, inner.positive
    )


def test_a_missing_value_keeps_all_negatives() -> None:
    collection = make_collection(0, 8).with_columns({"site": np.full(8, np.nan)})
    strategy = Exclude(inner=OVERLAP, by="site")
    keys = batch_of_views(strategy, collection, 0)
    assert torch.equal(
        strategy.relate(keys, keys, None).negative, strategy.strategies[0].relate(keys, keys, None).negative
    )


def test_invalid_combinations_are_refused() -> None:
    with pytest.raises(ConfigError, match="a sum has two or more"):
        Sum(parts=(OVERLAP,))
    with pytest.raises(ConfigError, match="2 parts but 1 weights"):
        Sum(parts=(OVERLAP, PATIENT), weights=(1.0,))
    with pytest.raises(ConfigError, match="a product has two or more"):
        Product(parts=(OVERLAP,))
    for part in ("hard_negatives", "mirror_position"):
        with pytest.raises(ConfigError, match=r"only sets M, and the M of a product is 1 - P"):
            Product(parts=(OVERLAP, Choice(part)))
    Product(parts=(OVERLAP, Choice("exclude", {"inner": "overlapping_crops"})))
    with pytest.raises(ConfigError, match="a part has an embedding queue"):
        Product(parts=(OVERLAP, Choice("nearest_neighbours")))
    for outer in ("exclude", "nearest_neighbours"):
        hard = PAIRS.build(Choice(outer, {"inner": "hard_negatives"}))
        with pytest.raises(ConfigError, match=f"put hard_negatives outside, with {outer} as its inner"):
            _ = hard.strategies  # type: ignore[attr-defined]
        outside = PAIRS.build(Choice("hard_negatives", {"inner": {outer: {"inner": "overlapping_crops"}}}))
        assert outside.strategies  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"by = site: the manifest has no such column; choose from patient"):
        Exclude(inner=OVERLAP, by="site").anchors(make_collection(0, 4))


def test_combinators_work_in_yaml_and_nest(tmp_path: Path, tiny_store: Path) -> None:
    text = f"""
data: {{root: {tiny_store}, patch_size: [8, 8, 8]}}
pairs:
  exclude:
    by: modality
    inner:
      sum:
        weights: [1, 2]
        parts: [same_patient, {{overlapping_crops: {{min_iou: 0.2}}}}]
views: none
encoder: {{unet3d: {{channels: [4, 8], strides: [1, 2]}}}}
objective: simclr
train: {{steps: 1, samples_per_step: 4}}
out_dir: unused
"""
    (tmp_path / "a.yaml").write_text(text)
    config = load(tmp_path / "a.yaml", (), PretrainConfig)
    parts = assemble(config)
    assert isinstance(parts.strategy, Exclude) and isinstance(parts.strategy.strategies[0], Sum)
    assert parts.strategy.strategies[0].strategies[1].min_iou == 0.2  # type: ignore[attr-defined]
    assert torch.isfinite(parts.learner(parts.dataset()[0]).value)
    assert parse(plain(config), PretrainConfig, "again") == config
    (tmp_path / "b.yaml").write_text(text.replace("min_iou", "min_iuo"))
    with pytest.raises(ConfigError, match=r"min_iuo.*unknown key; did you mean 'min_iou'"):
        load(tmp_path / "b.yaml", (), PretrainConfig)

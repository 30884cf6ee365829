"""Two global crops and local crops inside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medcl3d.core.collection import Collection
from medcl3d.core.errors import ConfigError
from medcl3d.core.geometry import Box
from medcl3d.pairs.multi_crop import MultiCrop
from tests.pairs.collections import collections, make_collection
from tests.pairs.test_strategies import batch_of_views


def covered(local: Box, outer: Box) -> float:
    shared = np.minimum(local.stop, outer.stop) - np.maximum(local.start, outer.start)
    return float(np.prod(np.maximum(shared, 0)) / np.prod(local.size))


@given(collection=collections, seed=st.integers(0, 1000), coverage=st.sampled_from([1.0, 0.7, 0.4, 0.0]))
def test_local_crops_are_inside_a_global_one(collection: Collection, seed: int, coverage: float) -> None:
    strategy = MultiCrop(local_size=(6, 5, 4), num_local=5, min_coverage=coverage)
    views = strategy.sample(collection, 1, np.random.default_rng(seed))
    assert [view.role for view in views] == ["global"] * 2 + ["local"] * 5
    for view in views[2:]:
        assert view.box.size == (6, 5, 4) and view.scan == 1
        assert max(covered(view.box, outer.box) for outer in views[:2]) >= coverage - 1e-9
        assert all(
            a >= 0 and b <= n
            for a, b, n in zip(view.box.start, view.box.stop, collection.shapes[1], strict=True)
        )


@given(collection=collections, seed=st.integers(0, 1000))
def test_pairs_of_local_views_are_ignored(collection: Collection, seed: int) -> None:
    strategy = MultiCrop(local_size=(6, 5, 4), num_local=3)
    keys = batch_of_views(strategy, collection, seed, count=3)
    relation = strategy.relate(keys, keys, None)
    local, same = keys.view >= 2, keys.sample[:, None] == keys.sample
    both_local, other = local[:, None] & local, ~keys.same_item(keys)
    assert (relation.positive[same & ~both_local & other] == 1).all()
    assert (relation.positive[same & both_local] == 0).all() and (relation.negative[same] == 0).all()
    assert (relation.negative[~same] == 1).all() and (relation.positive.sum(1) > 0).all()


def test_local_crops_larger_than_global_ones_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"local_size = \(6, 5, 9\) exceeds data.patch_size = \(12, 10, 8\)"
    ):
        MultiCrop(local_size=(6, 5, 9)).anchors(make_collection(0, 2))


def test_roles_go_through_the_loader_and_the_objective(tmp_path: Any, tiny_store: Any) -> None:
    from medcl3d.config.loading import load
    from medcl3d.pretraining.config import PretrainConfig
    from medcl3d.pretraining.parts import assemble

    text = f"""
data: {{root: {tiny_store}, patch_size: [16, 16, 16]}}
pairs: {{multi_crop: {{local_size: [8, 8, 8], num_local: 3}}}}
views: mri
encoder: {{unet3d: {{channels: [4, 8], strides: [1, 2]}}}}
objective: OBJECTIVE
train: {{steps: 1, samples_per_step: 2}}
out_dir: unused
"""
    for objective in ("simclr", "dense"):
        (tmp_path / "a.yaml").write_text(text.replace("OBJECTIVE", objective))
        parts = assemble(load(tmp_path / "a.yaml", (), PretrainConfig))
        raw = parts.dataset()[0]
        assert [(group.role, tuple(group.crops.shape)) for group in raw.groups] == [
            ("global", (4, 1, 16, 16, 16)),
            ("local", (6, 1, 8, 8, 8)),
        ]
        assert (
            raw.groups[1].keys.view.tolist() == [2, 3, 4] * 2
            and raw.groups[1].keys.sample.tolist() == [0] * 3 + [1] * 3
        )
        loss = parts.learner(raw)
        loss.value.backward()
        assert torch.isfinite(loss.value)
    (tmp_path / "a.yaml").write_text(text.replace("OBJECTIVE", "simclr").replace("[8, 8, 8]", "[7, 7, 7]"))
    with pytest.raises(ConfigError, match=r"the size of local views = \[7, 7, 7\] is not divisible"):
        assemble(load(tmp_path / "a.yaml", (), PretrainConfig))

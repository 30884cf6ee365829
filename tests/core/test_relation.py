"""Relations by list equal those of all pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.losses import keys_of
from medcl3d.core.equal_pairs import equal_pairs
from medcl3d.core.relation import Relation, related, related_at, related_within


@pytest.mark.parametrize(
    ("num_rows", "num_cols", "num_values"), [(40, 60, 30), (1, 50, 9), (50, 1, 9), (0, 3, 2)]
)
def test_listed_pairs_are_those_with_one_value(num_rows: int, num_cols: int, num_values: int) -> None:
    random = torch.Generator().manual_seed(0)
    rows, cols = (torch.randint(-1, num_values, (n,), generator=random) for n in (num_rows, num_cols))
    found = equal_pairs(rows, cols)
    assert found is not None
    assert np.array_equal(found, np.nonzero((rows[:, None] == cols).numpy()))


def test_many_pairs_with_one_value_are_not_listed() -> None:
    column = torch.arange(40) % 4
    assert equal_pairs(column, column) is None


def same(one: Relation, other: Relation) -> bool:
    return torch.equal(one.positive, other.positive) and torch.equal(one.negative, other.negative)


def test_a_relation_by_list_is_that_of_all_pairs() -> None:
    keys = keys_of(60)
    rows, cols = keys[10:50], keys[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    cols = replace(cols, view=cols.view.clone(), sample=cols.sample.clone())
    whole = related(rows, cols, rows.sample[:, None] == cols.sample)
    found = related_within(rows, cols, rows.sample, cols.sample)
    assert found.listed is not None and same(found, whole) and 0 < whole.positive.sum() < 100


@pytest.mark.parametrize("ignores", [True, False])
def test_listed_pairs_attract_or_are_ignored(ignores: bool) -> None:
    keys = keys_of(80)
    pairs = equal_pairs(keys.scan, keys.scan)
    assert pairs is not None
    chosen = np.random.default_rng(0).random(len(pairs[0])) < 0.4
    left = ~chosen if ignores else None
    found = related_at(keys, keys, pairs, chosen, left)
    positive, of_scan = torch.zeros(80, 80, dtype=torch.bool), keys.scan[:, None] == keys.scan
    positive[pairs] = torch.from_numpy(chosen)
    expected = related(keys, keys, positive, ~of_scan if ignores else ~positive)
    assert same(found, expected)
    assert found.listed is not None
    nothing = (found.positive == 0) & (found.negative == 0)
    for listed, mask in ((found.listed.attract, found.positive == 1), (found.listed.ignored, nothing)):
        assert np.array_equal(listed, np.nonzero(mask.numpy()))


def test_a_changed_relation_has_no_list() -> None:
    keys = keys_of(60)
    found = related_within(keys, keys, keys.sample, keys.sample)
    assert replace(found, negative=found.negative * 0).listed is None

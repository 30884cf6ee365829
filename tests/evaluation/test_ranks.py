"""Cross-dataset ranks as in Demsar's paper; equal arms are not distinguished."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medcl3d.evaluation.statistics.ranks import Ranks, ranks

# Demsar, JMLR 2006, table 6: area under the curve of C4.5, C4.5+m, C4.5+cf and C4.5+m+cf on 14 data sets.
TABLE_6 = np.array(
    [
        [0.763, 0.768, 0.771, 0.798], [0.599, 0.591, 0.590, 0.569], [0.954, 0.971, 0.968, 0.967], [0.628,
        0.661, 0.654, 0.657],
        [0.882, 0.888, 0.886, 0.898], [0.936, 0.931, 0.916, 0.931], [0.661, 0.668, 0.609, 0.685], [0.583,
        0.583, 0.563, 0.625],
        [0.775, 0.838, 0.866, 0.875], [1.000, 1.000, 1.000, 1.000], [0.940, 0.962, 0.965, 0.962], [0.619,
        0.666, 0.614, 0.669],
        [0.972, 0.981, 0.9751, 0.975], [0.957, 0.978, 0.946, 0.970],
    ]
)  # fmt: skip


def test_the_example_of_the_paper() -> None:
    found = ranks(TABLE_6)
    assert found.mean == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=0.002)
    assert found.critical == pytest.approx(1.25, abs=0.01)
    assert found.p == pytest.approx(stats.friedmanchisquare(*TABLE_6.T).pvalue) and found.num_sets == 14
    assert ranks(-TABLE_6, higher=False) == found


def test_groups_are_arms_within_the_critical_difference() -> None:
    assert Ranks((1.0, 4.0, 2.0, 3.2), 9, 0.01, 1.3).groups() == [(0, 2), (2, 3), (3, 1)]
    assert Ranks((1.0, 4.0, 2.0, 3.2), 9, 0.01, 5.0).groups() == [(0, 2, 3, 1)]
    assert Ranks((1.0, 2.0, 3.0), 9, 0.01, 0.5).groups() == []


def test_equal_arms_are_distinguished_at_the_nominal_rate() -> None:
    rng = np.random.default_rng(0)
    rejected = [
        np.ptp(found.mean) > found.critical
        for found in (ranks(rng.normal(size=(10, 4))) for _ in range(1000))
    ]
    assert 0.02 < np.mean(rejected) < 0.07
    assert ranks(np.ones((6, 3))).p == 1


@pytest.mark.parametrize("shape", [(4, 5), (8, 2)])
def test_too_few_data_sets_or_arms_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="are needed for ranks"):
        ranks(np.zeros(shape))

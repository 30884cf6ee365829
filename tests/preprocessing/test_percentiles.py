"""Percentiles from a bracket equal those of NumPy."""

import numpy as np
import pytest

from medcl3d.preprocessing import percentiles
from medcl3d.preprocessing.percentiles import SAMPLE, percentiles_of

WANTED = (0.0, 0.5, 50.0, 75.0, 99.5, 100.0)
RNG = np.random.default_rng(0)
VALUES = {
    "grey values": RNG.gamma(2.0, 100.0, 300_000),
    "air and a body": np.concatenate([np.zeros(200_000), RNG.normal(500, 80, 100_000)]),
    "whole numbers": RNG.integers(0, 40, (60, 70, 80)),
    "one value": np.full(100_000, 7.0),
    "two values": np.repeat([0.0, 1.0], 50_000),
    "few": RNG.normal(size=11),
    "one": np.array([3.0]),
    "sorted": np.sort(RNG.normal(size=100_000)),
    "not contiguous": RNG.normal(size=(40, 50, 60)).T[::2],
}


@pytest.mark.parametrize("name", VALUES)
def test_percentiles_are_those_of_numpy(name: str) -> None:
    values = VALUES[name].astype(np.float32)
    expected = np.percentile(values.astype(np.float64), WANTED)
    assert percentiles_of(values, WANTED) == pytest.approx(expected, rel=1e-7, abs=1e-12)


def sizes_ordered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the arrays that are ordered from now on."""
    found: list[int] = []
    partition = np.partition

    def noted(values: np.ndarray, at: tuple[int, int]) -> np.ndarray:
        found.append(values.size)
        return partition(values, at)

    monkeypatch.setattr(percentiles.np, "partition", noted)
    return found


def test_a_pattern_that_the_sample_misses_does_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    values = RNG.normal(size=20 * SAMPLE).astype(np.float32)
    values[::20] = 100.0  # all that the sample has
    whole = sizes_ordered(monkeypatch)
    assert percentiles_of(values, (50.0,))[0] == pytest.approx(np.percentile(values.astype(float), 50.0))
    assert whole == [values.size]


def test_only_the_values_in_a_bracket_are_ordered(monkeypatch: pytest.MonkeyPatch) -> None:
    values = RNG.normal(size=1_000_000).astype(np.float32)
    ordered = sizes_ordered(monkeypatch)
    percentiles_of(values, (0.5, 50.0, 99.5))
    assert len(ordered) == 3 and max(ordered) < 0.1 * values.size


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentiles_of(np.zeros(0), (50.0,))

"""Bootstrap intervals over patients: resamples, and limits as their percentiles."""

from __future__ import annotations

import numpy as np
import pytest

from medcl3d.evaluation.statistics.bootstrap import RESAMPLES, over_drawn_patients
from medcl3d.evaluation.statistics.intervals import Interval


class Noted:
    """The mean of the predictions; records its arguments."""

    def __init__(self) -> None:
        self.predictions: list[np.ndarray] = []
        self.targets: list[np.ndarray] = []
        self.values: list[float] = []

    def __call__(self, predictions: np.ndarray, targets: np.ndarray) -> float:
        self.predictions.append(predictions)
        self.targets.append(targets)
        self.values.append(float(predictions.mean()))
        return self.values[-1]


def intervals(
    patients: list[str], seed: int = 0, predictions: np.ndarray | None = None
) -> tuple[Interval, Noted]:
    noted = Noted()
    values = np.random.default_rng(5).normal(size=len(patients)) if predictions is None else predictions
    found = over_drawn_patients({"mean": noted}, values, np.arange(len(patients)), patients, seed)
    return found["mean"], noted


@pytest.mark.parametrize("seed", range(3))
def test_a_fortieth_of_the_resamples_is_outside_each_limit(seed: int) -> None:
    interval, noted = intervals([f"p{i}" for i in range(30)], seed)
    draws = np.array(noted.values[1:])
    assert len(draws) == RESAMPLES == 1000
    assert (draws < interval.low).sum() == 25 and (draws > interval.high).sum() == 25
    assert interval.mean == noted.values[0] and interval.n == 30


def test_the_interval_of_a_mean_has_the_theoretical_width() -> None:
    values = np.random.default_rng(1).normal(size=400)
    widths = [
        np.subtract(*(lambda i: (i.high, i.low))(intervals([f"p{i}" for i in range(400)], s, values)[0]))
        for s in range(5)
    ]
    assert np.mean(widths) == pytest.approx(
        2 * 1.96 * values.std() / 20, rel=0.04
    )  # percentiles of 5% and 95% would give 16% less


def test_patients_are_drawn_with_replacement_with_all_their_rows() -> None:
    patients = ["b", "a", "b", "c", "b", "c"]
    rows = {"a": [1], "b": [0, 2, 4], "c": [3, 5]}
    interval, noted = intervals(patients, predictions=np.arange(6) * 10.0)
    assert interval.n == 3
    assert noted.targets[0].tolist() == list(range(6))
    drawn = np.zeros((RESAMPLES, 3), int)
    for number, (predictions, targets) in enumerate(
        zip(noted.predictions[1:], noted.targets[1:], strict=True)
    ):
        assert predictions.tolist() == (targets * 10).tolist()
        times = [np.bincount(targets, minlength=6)[of] for of in rows.values()]
        assert all(len(set(of)) == 1 for of in times)  # all rows of a patient equally often
        drawn[number] = [of[0] for of in times]
    assert (drawn.sum(1) == 3).all() and (drawn > 1).any()
    assert np.abs(drawn.mean(0) - 1).max() < 4 * np.sqrt(2 / 3 / RESAMPLES)


def test_undefined_resamples_are_dropped_and_undefined_measures_left_out() -> None:
    values: list[float] = []

    def largest(predictions: np.ndarray, _targets: np.ndarray) -> float:
        values.append(float("nan") if len(values) % 2 else float(predictions.mean()))
        return values[-1]

    nothing = Noted()
    found = over_drawn_patients(
        {"never": lambda _p, _t: float("nan"), "half": largest, "all": nothing},
        np.random.default_rng(2).normal(size=20),
        np.zeros(20),
        [f"p{i}" for i in range(20)],
        0,
    )
    assert set(found) == {"half", "all"}
    defined = np.array(values[1:])[~np.isnan(values[1:])]
    assert len(defined) == RESAMPLES / 2
    np.testing.assert_allclose([found["half"].low, found["half"].high], np.quantile(defined, [0.025, 0.975]))


def test_measures_share_resamples_that_depend_on_the_seed() -> None:
    patients = [f"p{i}" for i in range(12)]
    one, other = Noted(), Noted()
    over_drawn_patients({"one": one, "other": other}, np.arange(12.0), np.arange(12), patients, 3)
    assert one.values == other.values
    assert intervals(patients, 3)[0] == intervals(patients, 3)[0] != intervals(patients, 4)[0]


def test_one_patient_has_a_value_and_no_limits() -> None:
    interval, noted = intervals(["p", "p", "p"])
    assert np.isnan(interval.low) and np.isnan(interval.high) and interval.n == 1 and not interval.known
    assert len(noted.values) == 1 and interval.mean == noted.values[0]


def test_two_patients_have_limits() -> None:
    interval, noted = intervals(["a", "b"], predictions=np.array([0.0, 1.0]))
    assert set(noted.values[1:]) == {0.0, 0.5, 1.0}
    assert (interval.mean, interval.low, interval.high, interval.n) == (0.5, 0.0, 1.0, 2)


def test_no_limits_if_all_resamples_are_undefined() -> None:
    seen: list[int] = []

    def once(predictions: np.ndarray, _targets: np.ndarray) -> float:
        seen.append(len(predictions))
        return 0.5 if len(seen) == 1 else float("nan")

    found = over_drawn_patients({"once": once}, np.arange(4.0), np.zeros(4), list("abcd"), 0)["once"]
    assert found.mean == 0.5 and np.isnan(found.low) and np.isnan(found.high)

"""The time estimate of a run: one line from its first steps, without the very first, if the run is long."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from medcl3d.training import time_estimate
from medcl3d.training.time_estimate import TimeEstimate


def lines_of(
    monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float], total: int, first: int = 0
) -> dict[int, str]:
    """The lines of a run, by step; seconds: of a step."""
    now = 0.0
    monkeypatch.setattr(time_estimate.time, "monotonic", lambda: now)
    estimate, found = TimeEstimate(first, total), {}
    for step in range(first + 1, total + 1):
        now += seconds(step)
        if line := estimate.after(step):
            found[step] = line
    return found


def test_a_long_run_is_estimated_once_and_without_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    found = lines_of(monkeypatch, lambda step: 500.0 if step == 1 else 2.0, total=1804)
    assert found == {4: "about 60 min for 1800 steps, from 2 s per step"}


def test_fast_steps_are_timed_for_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    (step,) = lines_of(monkeypatch, lambda step: 0.125, total=10_000)
    assert step == 1 + 16


def test_a_short_run_has_no_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines_of(monkeypatch, lambda step: 1.0, total=50) == {}


def test_a_resumed_run_counts_the_remaining_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    found = lines_of(monkeypatch, lambda step: 1.0, total=1000, first=796)
    assert found == {800: "about 3 min for 200 steps, from 1 s per step"}

"""Errors as values: their parts, their one-line message, and their field within a configuration."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from medcl3d.core.errors import ConfigError, DataError, UserError, inside


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConfigError("lr", -1, "must be above 0", "use 0.1"), "lr = -1: must be above 0; use 0.1"),
        (ConfigError("lr", "x", "no number"), "lr = 'x': no number"),
        (ConfigError("init", Path("a/b"), "no file"), "init = a/b: no file"),
        (ConfigError("name", "x" * 100, "too long"), f"name = '{'x' * 76}...: too long"),
        (ConfigError("k", 3, "exceeds n = 2", "lower it", colon=False), "k = 3 exceeds n = 2; lower it"),
        (ConfigError("lr", None, "is missing", place="a.yaml:3"), "a.yaml:3: lr: is missing"),
        (ConfigError("k", 3, "odd", owner="knn"), "knn: k = 3: odd"),
        (ConfigError((), 3, "a mapping is needed"), "= 3: a mapping is needed"),
        (ConfigError(problem="no probe", remedy="set knn"), "no probe; set knn"),
        (ConfigError("a", 1, "odd", also=["b: odd", "c: odd"]), "a = 1: odd; also b: odd; also c: odd"),
        (DataError("a.nii", "truncated", "fetch it again"), "a.nii: truncated; fetch it again"),
        (DataError("", "no item has a positive"), "no item has a positive"),
        (DataError("no item has a positive"), "no item has a positive"),
    ],
)
def test_the_message_has_place_field_value_problem_and_remedy(error: UserError, message: str) -> None:
    assert str(error) == message
    copied = pickle.loads(pickle.dumps(error))  # errors come back from the processes of workers
    assert str(copied) == message and copied.where == error.where and vars(copied) == vars(error)


def test_a_builder_extends_the_field_and_keeps_the_message() -> None:
    with pytest.raises(ConfigError) as caught, inside("pairs"), inside("sum", "parts", 1):
        error = ConfigError("min_iou", 2, "exceeds 1", colon=False)
        error.of("crops")
        error.of("crops")
        raise error
    assert caught.value.where == ("pairs", "sum", "parts", 1, "crops", "min_iou")
    assert caught.value.field == "pairs.sum.parts.1.crops.min_iou" and caught.value.value == 2
    assert str(caught.value) == "crops: min_iou = 2 exceeds 1"


def test_an_error_without_a_field_is_about_the_whole_part() -> None:
    with pytest.raises(DataError) as caught, inside("pairs", "exclude"), inside("exclude", "inner"):
        raise DataError("exclude", "no scan is an anchor")
    assert (
        caught.value.field == "pairs.exclude.inner" and str(caught.value) == "exclude: no scan is an anchor"
    )

"""A step of several ranks has few collectives, and each sum of small numbers is one."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.scaling import shape_of
from benchmarks.scaling_model import messages
from medcl3d.objectives import OBJECTIVES
from tests.drills.processes import Command, environments_of_ranks
from tests.pretend.allowed import MAX_COLLECTIVES
from tests.pretend.collectives import Collective, record_steps
from tests.pretend.steps import parts_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ranks are forks, as in tests/drills")
RANKS = 2
FEW = ["simclr"]


@pytest.fixture(scope="module")
def steps(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[Collective]]]:
    """Objective -> the collectives of a step, and of a logged one."""
    return recorded_steps(tiny_store, tmp_path_factory.mktemp("few"), FEW)


def recorded_steps(store: Path, folder: Path, names: list[str]) -> dict[str, list[list[Collective]]]:
    out = folder / "steps.json"
    commands = [
        Command(record_steps, [store, names, out, variables], folder / "unused")
        for variables in environments_of_ranks(RANKS)
    ]
    assert [command.wait() for command in commands] == [0] * RANKS
    found = json.loads(out.read_text())
    return {name: [[Collective(*one) for one in step] for step in both] for name, both in found.items()}


def check(name: str, both: list[list[Collective]]) -> None:
    step, logged = both
    assert len(step) <= MAX_COLLECTIVES[name], "\n".join(map(str, step))
    assert len(logged) == len(step), "metrics are summed with the loss"
    assert not [one for one in step if one.place == "elsewhere"]


@pytest.mark.parametrize("name", FEW)
def test_a_step_has_few_collectives(steps: dict[str, list[list[Collective]]], name: str) -> None:
    check(name, steps[name])


def test_the_collectives_of_simclr_are_all_known(steps: dict[str, list[list[Collective]]]) -> None:
    """Batch norm of the head and the gather of embeddings, each with a backward pass; keys; three sums."""
    kinds = Counter(one.kind for one in steps["simclr"][0])
    assert kinds == {"all-gather": 3, "reduce-scatter": 2, "all-reduce": 3}
    summed, gradients, votes = (one.bytes for one in steps["simclr"][0] if one.kind == "all-reduce")
    assert (summed, votes) == (2 * 8, 4) and gradients > 1000, "two float64 numbers and one float32 number"
    summed_too = next(one for one in steps["simclr"][1] if one.kind == "all-reduce")
    assert summed_too.bytes == 14 * 8, "with the metrics of a logged step"


def test_the_model_of_scaling_has_the_collectives_of_a_step(
    tiny_store: Path, steps: dict[str, list[list[Collective]]]
) -> None:
    shape = shape_of(parts_of(tiny_store, "simclr"))
    shape = replace(shape, samples=shape.samples // RANKS)
    assert sorted(messages(shape)) == sorted((one.kind, one.bytes) for one in steps["simclr"][0])


@pytest.mark.slow
def test_no_objective_has_more_collectives_than_allowed(tiny_store: Path, tmp_path: Path) -> None:
    assert sorted(MAX_COLLECTIVES) == sorted(OBJECTIVES.names())
    for name, both in recorded_steps(tiny_store, tmp_path, OBJECTIVES.names()).items():
        check(name, both)

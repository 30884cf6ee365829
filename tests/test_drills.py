"""Faults of running trainings: how each ends, and that the run resumes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.drills import DRILLS
from tests.drills.counts import counts
from tests.drills.drill import Drill
from tests.drills.namespaces import allowed
from tests.drills.place import Setting

FAST = ("newest checkpoint truncated", "SIGKILL to a run", "one bit of the weights changed")
ELSEWHERE = {54, 56, 65}
"""Faults that tests of their parts cover, listed in docs/reference/drills.md."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads processes from /proc")


@pytest.fixture(scope="module")
def setting(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(tmp_path_factory.mktemp("drills"), tiny_store)


def case(drill: Drill) -> object:
    return pytest.param(drill, id=drill.name, marks=() if drill.what in FAST else pytest.mark.slow)


@pytest.mark.parametrize("drill", [case(drill) for drill in DRILLS])
def test_a_fault_ends_as_expected_and_the_run_resumes(drill: Drill, setting: Setting) -> None:
    if drill.namespaces and not allowed():
        pytest.skip("this machine does not allow private disks and networks (unshare)")
    outcome = drill.cause(setting.place(drill.name.replace("/", "_")))
    assert not drill.mistakes(outcome), outcome.output


@pytest.mark.slow
def test_random_kills_and_damages_lose_nothing(setting: Setting) -> None:
    for count in counts(setting, kills=3, others=20):
        assert count.expected == count.caused, count


def test_the_drills_cover_the_faults_of_runs() -> None:
    assert {drill.number for drill in DRILLS if drill.number} | ELSEWHERE == set(range(47, 75))

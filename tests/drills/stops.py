"""Drills of signals and kills, of one process and of one of two ranks."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from functools import partial

from tests.drills.drill import Drill
from tests.drills.loading import block
from tests.drills.place import Outcome, Place

STOPPED = "rerun the command to resume"
LOST = ["lost its connection", "the same commands resume"]


def signalled(number: signal.Signals, ranks: int = 1, to: int = 0) -> Callable[[Place], Outcome]:
    """Send a signal to one process after the fourth step."""

    def cause(place: Place) -> Outcome:
        commands = place.start(
            ranks=ranks, before=[partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)] * ranks
        )
        place.wait_for_step(4, commands)
        commands[to].send(number)
        return place.end(commands)

    return cause


def interrupted_twice(place: Place) -> Outcome:
    """Send two SIGINT while the run waits for a batch, so that it cannot stop after a step."""
    lost = place.folder / "lost"
    commands = place.start(before=[partial(block, lost)])
    place.wait_for_step(4, commands)
    lost.touch()
    time.sleep(2)  # until the run waits
    for _ in range(2):
        commands[0].send(signal.SIGINT)
        time.sleep(0.5)
    return place.end(commands, lost.unlink)


def silent_rank(place: Place) -> Outcome:
    """Suspend one of two ranks."""
    commands = place.start("train.timeout_s=5", ranks=2)
    place.wait_for_step(4, commands)
    commands[1].send(signal.SIGSTOP)
    commands[0].wait()
    commands[1].kill()
    return place.end(commands)


def two_runs(place: Place) -> Outcome:
    """Start a second run in the folder of a suspended one."""
    first = place.start()
    place.wait_for_step(4, first)
    first[0].send(signal.SIGSTOP)
    second = place.start()
    second[0].wait()
    first[0].send(signal.SIGCONT)
    first[0].wait()
    return place.end(second)


def left_partial_file(place: Place) -> Outcome:
    """Leave what a kill in mid-write leaves."""
    place.interrupted()
    left = place.out / "checkpoints" / ".step_00000009.pt.x1.part"
    left.write_bytes(b"half")
    outcome = place.meet()
    assert not left.exists()
    return outcome


STOPS = [
    *(
        Drill(58, f"{number.name} to a run", signalled(number), [75], [STOPPED], "stopped")
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
    ),
    Drill(58, "SIGTERM to rank 1 of 2", signalled(signal.SIGTERM, 2, 1), [75, 75], [STOPPED], "stopped"),
    Drill(58, "SIGINT twice", interrupted_twice, [130], ["interrupted"], "failed"),
    Drill(59, "SIGKILL to a run", signalled(signal.SIGKILL), [-9], [], "killed"),
    Drill(60, "partial file of a killed process", left_partial_file, [0], ["resumed from step 6"], "done"),
    Drill(62, "SIGKILL to rank 1 of 2", signalled(signal.SIGKILL, 2, 1), [4, -9], LOST, "failed"),
    Drill(62, "SIGKILL to rank 0 of 2", signalled(signal.SIGKILL, 2, 0), [-9, 4], LOST, "killed"),
    Drill(
        63,
        "rank 1 of 2 suspended",
        silent_rank,
        [4, -9],
        ["rank 0 waited 5 s for another rank", "the same commands resume"],
        "failed",
    ),
    Drill(
        70,
        "two runs in one folder",
        two_runs,
        [2],
        ["is running in this folder", "set another out_dir"],
        "done",
    ),
]

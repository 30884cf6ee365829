"""Drills of worker processes, shared memory and stored scans."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from medcl3d.sampling import batches
from medcl3d.store.store import Store
from tests.drills.disks import fill
from tests.drills.drill import Drill
from tests.drills.namespaces import small_disk
from tests.drills.place import Outcome, Place
from tests.drills.processes import LIMIT_S, until

SHARED_MEMORY = Path("/dev/shm")


def killed_worker(place: Place) -> Outcome:
    """Kill one of two workers."""
    commands = place.start("train.workers=2")
    place.wait_for_step(3, commands)
    until(lambda: len(commands[0].children) == 2, commands)
    os.kill(commands[0].children[0], signal.SIGKILL)
    return place.end(commands)


def blocked_worker(place: Place) -> Outcome:
    """Let a worker wait for a scan that the disk does not deliver, as a lost network disk."""
    lost = place.folder / "lost"
    commands = place.start("train.workers=1", before=[partial(block, lost)])
    place.wait_for_step(3, commands)
    lost.touch()
    return place.end(commands)


def block(lost: Path) -> None:
    """Let reads wait once a file exists, and wait 5 s for workers instead of 300."""
    batches.WORKER_TIMEOUT_S = 5
    read = Store.read_crop

    def wait(*arguments: Any) -> Any:
        while lost.exists():
            time.sleep(0.1)
        return read(*arguments)

    Store.read_crop = wait  # type: ignore[method-assign, assignment]


def small_shared_memory(place: Place) -> Outcome:
    """Start two workers with 64 kB of shared memory, then with the default."""
    with small_disk(SHARED_MEMORY, "64k") as disk:
        return place.end(place.start("train.workers=2", before=[disk.enter()]))


def full_shared_memory(place: Place) -> Outcome:
    """Fill the shared memory while two workers run, also what they free."""
    with small_disk(SHARED_MEMORY, "8m") as disk:
        commands = place.start("train.workers=2", before=[disk.enter()])
        place.wait_for_step(3, commands)
        end = time.monotonic() + LIMIT_S
        while not commands[0].ended and time.monotonic() < end:
            fill(disk.seen(SHARED_MEMORY))
        return place.end(commands)


def damaged_store(change: Callable[[Path], object]) -> Callable[[Place], Outcome]:
    """Change the file of every scan during the run, then restore the store."""

    def cause(place: Place) -> Outcome:
        root = place.own_store()
        commands = place.start()
        place.wait_for_step(4, commands)
        commands[0].send(signal.SIGSTOP)
        shutil.copytree(root, place.folder / "former")
        for path in (root / "store").glob("*.npy"):
            change(path)
        commands[0].send(signal.SIGCONT)

        def restore() -> None:
            shutil.rmtree(root)
            shutil.move(place.folder / "former", root)

        return place.end(commands, restore)

    return cause


def halved(path: Path) -> None:
    """Remove the second half of a file."""
    os.truncate(path, path.stat().st_size // 2)


LOADING = [
    Drill(
        67,
        "worker killed",
        killed_worker,
        [4],
        ["was it out of memory, or killed", "the same command resumes"],
        "failed",
    ),
    Drill(
        67,
        "read of a worker that does not return",
        blocked_worker,
        [4],
        ["timed out after 5 seconds", "the same command resumes"],
        "failed",
    ),
    Drill(
        73,
        "stored scans truncated during the run",
        damaged_store(halved),
        [3],
        ["bytes, 65664 were written", "run the same prepare command again"],
        "failed",
    ),
    Drill(
        73,
        "stored scans deleted during the run",
        damaged_store(Path.unlink),
        [3],
        ["cannot be read (No such file or directory)", "run the same prepare command again"],
        "failed",
    ),
    Drill(
        74,
        "64 kB of shared memory",
        small_shared_memory,
        [4],
        ["shared memory is full or too small: 2 workers need", "--shm-size"],
        "failed",
        namespaces=True,
    ),
    Drill(
        74,
        "shared memory filled during the run",
        full_shared_memory,
        [4],
        ["shared memory is full", "--shm-size"],
        "failed",
        namespaces=True,
    ),
]

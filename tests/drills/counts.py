"""Kills and changed bytes at random, counted."""

from __future__ import annotations

import shutil
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from medcl3d.training.checkpoint import TrainState, checksum, found, load_latest, save
from tests.drills.checkpoints import PREVIOUS
from tests.drills.place import EXACT, STEPS, Setting
from tests.drills.processes import Command, until


@dataclass(frozen=True)
class Count:
    """How often a random fault was caused, and how often it ended as expected."""

    what: str
    caused: int
    expected: int
    end: str


def random_kills(setting: Setting, number: int, ranks: int) -> Count:
    """Kill a run, or one of its ranks, after a random step and a random time, and resume it."""
    rng, exact = np.random.default_rng(ranks), 0
    for kill in range(number):
        place = setting.place(f"kill_{ranks}_{kill}")
        commands = place.start(ranks=ranks)
        place.wait_for_step(int(rng.integers(STEPS)), commands)
        time.sleep(rng.uniform(0, 0.1))
        commands[rng.integers(ranks)].kill()
        exact += place.end(commands).recovered == EXACT
        shutil.rmtree(place.folder)
    what = "SIGKILL of a run" if ranks == 1 else f"SIGKILL of one of {ranks} ranks"
    return Count(f"{what} after a random step", number, exact, "resumed to the bit")


def kills_in_mid_write(setting: Setting, number: int) -> Count:
    """Kill a process that writes checkpoints all the time, and load the newest one."""
    place, readable = setting.place("kills_in_mid_write"), 0
    place.out.mkdir()
    for kill in range(number):
        writer = Command(write_checkpoints, [place.out], place.folder / "output.txt")
        until(lambda: bool(found(place.out)), [writer])
        time.sleep(0.002 * (kill % 10))
        writer.kill()
        latest = load_latest(place.out)
        readable += latest is not None and bool((latest.model["w"] == latest.step).all())
        for path in place.out.iterdir():
            path.unlink()
    return Count("SIGKILL while checkpoints are written", number, readable, "the newest checkpoint loads")


def write_checkpoints(folder: Path) -> None:
    """Write checkpoints without an end."""
    step = 0
    while True:
        step += 1
        save(folder, TrainState(step, {"w": torch.full((200_000,), float(step))}, {}, torch.get_rng_state()))


def damaged_checkpoints(setting: Setting, number: int, *, truncate: bool) -> Count:
    """Change a random bit of the newest checkpoint, or cut it at a random byte, and load the newest one."""
    rng, noticed = np.random.default_rng(truncate), 0
    place = setting.place(f"damaged_{truncate}")
    place.interrupted()
    newest = place.checkpoints[-1]
    whole = newest.read_bytes()
    content = checksum(load_latest(newest.parent).content())  # type: ignore[union-attr]
    for _ in range(number):
        changed, at = bytearray(whole), int(rng.integers(len(whole)))
        if truncate:
            del changed[at:]
        else:
            changed[at] ^= 1 << int(rng.integers(8))
        newest.write_bytes(changed)
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            latest = load_latest(newest.parent)
        assert latest is not None
        # A bit between the tensors has no effect.
        noticed += any(PREVIOUS in str(one.message) for one in given) or checksum(latest.content()) == content
    what = "checkpoint truncated at a random byte" if truncate else "random bit of a checkpoint changed"
    return Count(what, number, noticed, "noticed, or without an effect on the content")


def counts(setting: Setting, kills: int, others: int) -> list[Count]:
    """All counts. kills: of runs, for each number of ranks; others: of each other fault."""
    return [
        random_kills(setting, kills, 1),
        random_kills(setting, kills, 2),
        kills_in_mid_write(setting, others),
        damaged_checkpoints(setting, others, truncate=False),
        damaged_checkpoints(setting, others, truncate=True),
    ]

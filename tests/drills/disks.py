"""Drills of full and unwritable disks, and of damaged files of a run folder."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from tests.drills.drill import Drill
from tests.drills.namespaces import small_disk
from tests.drills.place import Outcome, Place
from tests.drills.processes import until

DAMAGED = "is damaged"
BLOCK = 4096  # bytes


def fill(folder: Path, keep: int = 0) -> Path:
    """Fill the disk of a folder with one file, or extend that file, except for some bytes."""
    path = folder / "filler"
    with path.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * BLOCK)
        except OSError:
            file.truncate(max(0, file.tell() - keep))
    return path


def full_at_a_checkpoint(place: Place) -> Outcome:
    """Resume on a disk with less space than a checkpoint takes, then free it."""
    with small_disk(place.out, "8m") as disk:
        place.before, place.visible = disk.enter(), disk.seen(place.out)
        place.interrupted()
        filler = fill(place.visible, keep=200_000)
        return place.end(place.start(), filler.unlink)


def full_from_the_start(place: Place) -> Outcome:
    """Start on a disk that cannot take a picture."""
    with small_disk(place.out, "8m") as disk:
        place.before, place.visible = disk.enter(), disk.seen(place.out)
        filler = fill(place.visible, keep=60_000)
        return place.end(place.start(), filler.unlink)


def full_for_metrics(place: Place) -> Outcome:
    """Fill the disk during the run, and free it before the next checkpoint."""
    with small_disk(place.out, "8m") as disk:
        place.before, place.visible = disk.enter(), disk.seen(place.out)
        commands = place.start("train.checkpoint_every=100")
        place.wait_for_step(4, commands)
        commands[0].send(signal.SIGSTOP)
        filler = fill(place.visible)
        commands[0].send(signal.SIGCONT)
        until(lambda: "status.json: warning" in commands[0].output, commands)
        commands[0].send(signal.SIGSTOP)
        filler.unlink()
        commands[0].send(signal.SIGCONT)
        return place.end(commands)


def full_for_tensorboard(place: Place) -> Outcome:
    """Train with TensorBoard on a full disk of its own."""
    place.out.mkdir()
    with small_disk(place.out / "tensorboard", "4k") as disk:
        place.before = disk.enter()
        fill(disk.seen(place.out / "tensorboard"))
        return place.meet()


def read_only(place: Place) -> Outcome:
    """Resume on a disk that is read-only, then on one that is not."""
    with small_disk(place.out, "8m") as disk:
        place.before, place.visible = disk.enter(), disk.seen(place.out)
        place.interrupted()
        disk.run("mount", "-o", "remount,ro", str(place.out))
        commands = place.start()
        return place.end(commands, lambda: disk.run("mount", "-o", "remount,rw", str(place.out)))


def in_the_way(place: Place) -> Outcome:
    """Start with a file in place of the run folder."""
    place.out.write_text("not a folder")
    return place.end(place.start(), place.out.unlink)


def deleted(place: Place) -> Outcome:
    """Delete the run folder during the run."""
    commands = place.start()
    place.wait_for_step(4, commands)
    commands[0].send(signal.SIGSTOP)
    shutil.rmtree(place.out)
    commands[0].send(signal.SIGCONT)
    return place.end(commands)


def garbage(name: str) -> Callable[[Place], Outcome]:
    """Replace a file of the run by bytes that are not text; then restore it."""

    def cause(place: Place) -> Outcome:
        place.interrupted()
        path = place.out / name
        former = path.read_bytes()
        path.write_bytes(b"\xff\xfe\x00[1, 2\n")
        return place.end(place.start(), lambda: path.write_bytes(former))

    return cause


def metrics_of_garbage(place: Place) -> Outcome:
    """Add rows to metrics.jsonl that are not objects or not text."""
    place.interrupted()
    with (place.out / "metrics.jsonl").open("ab") as file:
        file.write(b'[1]\n3\n"x"\n\xff\xfe\n{"step": null}\n{"step": 7, "lo')
    return place.meet()


DISKS = [
    Drill(
        61,
        "disk full at a checkpoint",
        full_at_a_checkpoint,
        [4],
        [
            "step_00000009.pt: cannot be written (No space left on device;",
            "needed",
            "free disk space, then rerun the command",
        ],
        "failed",
        namespaces=True,
    ),
    Drill(
        61,
        "disk full from the first picture on",
        full_from_the_start,
        [4],
        ["pictures: warning: cannot be written", "status.json: cannot write: No space left on device"],
        "not started",
        namespaces=True,
    ),
    Drill(68, "read-only disk", read_only, [4], ["Read-only file system"], "killed", namespaces=True),
    Drill(68, "file in place of the run folder", in_the_way, [4], ["cannot be written"], "damaged"),
    Drill(
        69,
        "disk full for TensorBoard",
        full_for_tensorboard,
        [0],
        ["tensorboard: warning: cannot be written"],
        "done",
        namespaces=True,
    ),
    Drill(
        69,
        "disk full between checkpoints",
        full_for_metrics,
        [0],
        ["status.json: warning: cannot be written (No space left on device); the run continues"],
        "done",
        namespaces=True,
    ),
    Drill(
        None,
        "run folder deleted during the run",
        deleted,
        [4],
        ["this folder was deleted during the run", "the same command starts again"],
        "not started",
    ),
    *(
        Drill(
            None,
            f"{name} of other bytes",
            garbage(name),
            [3],
            [f"{name}: ", DAMAGED, "delete its folder"],
            "damaged" if name != "provenance.json" else "killed",
        )
        for name in ("status.json", "provenance.json", "config.yaml")
    ),
    Drill(None, "metrics.jsonl with other rows", metrics_of_garbage, [0], ["resumed from step 6"], "done"),
]

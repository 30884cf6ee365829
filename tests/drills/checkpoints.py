"""Drills of damaged, foreign and outdated checkpoints and weights."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.drills.drill import Drill
from tests.drills.place import Outcome, Place

PREVIOUS = "using the previous checkpoint"


def damaged(change: Callable[[Path], object]) -> Callable[[Place], Outcome]:
    """Change the newest checkpoint of an interrupted run."""

    def cause(place: Place) -> Outcome:
        place.interrupted()
        change(place.checkpoints[-1])
        return place.meet()

    return cause


def refused(change: Callable[[Path], object]) -> Callable[[Place], Outcome]:
    """The same, and then remove that checkpoint."""

    def cause(place: Place) -> Outcome:
        place.interrupted()
        newest = place.checkpoints[-1]
        change(newest)
        return place.end(place.start(), newest.unlink)

    return cause


def all_truncated(place: Place) -> Outcome:
    """Truncate every checkpoint."""
    place.interrupted()
    for path in place.checkpoints:
        halved(path)
    return place.meet()


def halved(path: Path) -> None:
    """Remove the second half of a file."""
    os.truncate(path, path.stat().st_size // 2)


def flipped(path: Path) -> None:
    """Change one bit of the largest tensor, whose bytes torch reads without a check."""
    model = torch.load(path, weights_only=True)["model"]
    largest = max(model.values(), key=lambda tensor: tensor.numel())
    content = bytearray(path.read_bytes())
    content[content.index(largest.numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)


class Evil:
    """An object whose pickle runs a command when it is read."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.mark}'",)


def malicious(place: Place) -> Outcome:
    """Replace the newest checkpoint by a pickle that runs code."""
    place.interrupted()
    mark = place.folder / "code_was_run"
    torch.save({"schema": 1, "model": Evil(mark)}, place.checkpoints[-1])
    outcome = place.meet()
    assert not mark.exists()
    return outcome


def edited(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change the content of a checkpoint of an older schema, which has no checksum."""

    def change(path: Path) -> None:
        content = torch.load(path, weights_only=True)
        content["schema"] = 1
        del content["sha256"]
        edit(content)
        torch.save(content, path)

    return change


def larger(content: dict[str, Any]) -> None:
    """Give a network other shapes."""
    content["model"] = {name: torch.cat([value, value]) for name, value in content["model"].items()}


def another_configuration(place: Place) -> Outcome:
    """Resume with another seed."""
    place.interrupted()
    return place.meet("seed=1")


def other_data(place: Place) -> Outcome:
    """Resume on a store with a patient moved to the test side, then on the former one."""
    place.interrupted()
    changed = place.folder / "store"
    shutil.copytree(place.setting.store, changed)
    split = json.loads((changed / "split.json").read_text())
    split["test"].append(split["train"].pop())
    (changed / "split.json").write_text(json.dumps(split))
    place.setting.use_store(changed)
    return place.end(place.start(), place.setting.use_store)


CHECKPOINTS = [
    Drill(47, "newest checkpoint truncated", damaged(halved), [0], [PREVIOUS], "done"),
    Drill(47, "both checkpoints truncated", all_truncated, [0], [PREVIOUS], "done"),
    Drill(
        47,
        "one bit of a tensor changed",
        damaged(flipped),
        [0],
        ["differs from its checksum", PREVIOUS],
        "done",
    ),
    Drill(
        47,
        "checkpoint without its optimizer",
        damaged(edited(lambda c: c.pop("optimizer"))),
        [0],
        ["no optimizer", PREVIOUS],
        "done",
    ),
    Drill(48, "checkpoint that runs code", malicious, [0], ["no code was run", PREVIOUS], "done"),
    Drill(
        49,
        "checkpoint of another network",
        refused(edited(larger)),
        [2],
        ["does not fit the network"],
        "failed",
    ),
    Drill(
        50,
        "checkpoint of a newer version",
        refused(edited(lambda c: c.update(schema=99))),
        [2],
        ["written by a newer medcl3d"],
        "failed",
    ),
    Drill(
        50,
        "checkpoint of an older version",
        damaged(edited(lambda c: None)),
        [0],
        ["resumed from step 6"],
        "done",
    ),
    Drill(51, "another seed", another_configuration, [2], ["seed: 0 -> 1", "set another out_dir"], "killed"),
    Drill(51, "another split", other_data, [2], ["split.json"], "killed"),
]

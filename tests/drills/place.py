"""A tiny pretraining that a drill damages: started, interrupted, resumed and compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from medcl3d.comparison.status import state_of
from tests.drills.processes import Command, environments_of_ranks, medcl3d, nothing, until
from tests.pretraining.test_pretrain import config_of, curve, write

STEPS = 16
CHECKPOINTS = 3  # steps between checkpoints
KILLED_AT = 7  # so that there are checkpoints of steps 3 and 6
EXACT, NONE = "to the bit", "-"


@dataclass(frozen=True)
class Outcome:
    """What a drill observed.

    codes      exit codes, one per process; negative: the signal that ended it
    state      of the run, as `medcl3d status` shows it after the fault
    recovered  EXACT if the same command then ended with the metrics and weights of a run without a fault,
               NONE if nothing was started
    """

    codes: tuple[int, ...]
    output: str
    state: str
    recovered: str


class Setting:
    """What all drills share: a store, and a run of it without a fault and one that was killed.

    folder  for the runs
    store   a prepared store, which drills only read
    """

    def __init__(self, folder: Path, store: Path):
        self.folder, self.store, self._prepared = folder, folder / "store", store
        folder.mkdir(exist_ok=True)
        self.use_store()

    def use_store(self, store: Path | None = None) -> None:
        """Let the runs find this store, or again the prepared one, under the same name."""
        self.store.unlink(missing_ok=True)
        self.store.symlink_to(store or self._prepared)

    def place(self, name: str) -> Place:
        """A new folder for one drill."""
        return Place(self, self.folder / name)

    @cached_property
    def whole(self) -> Path:
        """A run that nothing interrupted."""
        return self._whole(1)

    @cached_property
    def whole_of_two(self) -> Path:
        """The same run on two ranks."""
        return self._whole(2)

    @cached_property
    def killed(self) -> Path:
        """A run that was killed after `KILLED_AT` steps."""
        place = self.place("killed")
        commands = place.start()
        place.wait_for_step(KILLED_AT, commands)
        commands[0].kill()
        assert [path.name for path in place.checkpoints] == ["step_00000003.pt", "step_00000006.pt"]
        return place.out

    def _whole(self, ranks: int) -> Path:
        place = self.place(f"whole_{ranks}")
        commands = place.start(ranks=ranks)
        for command in commands:
            assert command.wait() == 0, command.output
        return place.out


def command_of(arguments: Sequence[str], place: Place) -> Outcome:
    """Run another command at a place, which leaves no run to resume."""
    command = medcl3d(arguments, place.folder / "output.txt")
    return Outcome((command.wait(),), command.output, state_of(place.visible).state, NONE)


class Place:
    """The folder of one drill, with a configuration and the folder `out` of its run."""

    def __init__(self, setting: Setting, folder: Path):
        self.setting, self.folder, self.out = setting, folder, folder / "run"
        folder.mkdir()
        self.config: dict[str, Any] = config_of(
            setting.store, self.out, steps=STEPS, checkpoint_every=CHECKPOINTS
        )
        self.before: Callable[[], object] = nothing
        self.visible = self.out  # the same folder, as this process sees it

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints, sorted by step."""
        return sorted((self.visible / "checkpoints").glob("step_*.pt"))

    def interrupted(self) -> None:
        """Copy a killed run to this place."""
        shutil.copytree(self.setting.killed, self.visible, dirs_exist_ok=True)

    def own_store(self) -> Path:
        """Train on a copy of the store, which the drill may damage."""
        root = self.folder / "store"
        shutil.copytree(self.setting.store, root)
        self.config["data"]["root"] = str(root)
        return root

    def start(
        self,
        *overrides: str,
        ranks: int = 1,
        before: Sequence[Callable[[], object]] = (),
        environment: dict[str, str] | None = None,
    ) -> list[Command]:
        """Start the pretraining, as one process or as ranks; `before` of each process."""
        path = write(self.folder / "c.yaml", self.config)
        functions = before or [self.before] * ranks
        return [
            medcl3d(
                ["pretrain", str(path), *overrides],
                self.folder / f"output_{rank}.txt",
                functions[rank],
                {**variables, **(environment or {})},
            )
            for rank, variables in enumerate(environments_of_ranks(ranks))
        ]

    @property
    def step(self) -> int:
        """The number of steps in metrics.jsonl."""
        file = self.visible / "metrics.jsonl"
        return file.read_bytes().count(b"\n") if file.exists() else 0

    def wait_for_step(self, step: int, commands: Sequence[Command]) -> None:
        """Return once the run has logged this step."""
        until(lambda: self.step >= step, commands)

    def refuse(self, *overrides: str, **options: Any) -> Outcome:
        """Run a command that ends with an error, after which there is nothing to resume."""
        command = self.start(*overrides, **options)[0]
        codes = (command.wait(),)
        return Outcome(codes, command.output, state_of(self.visible).state, NONE)

    def meet(self, *overrides: str, **options: Any) -> Outcome:
        """Run the command on what the drill has damaged, then resume it."""
        return self.end(self.start(*overrides, **options))

    def end(
        self, commands: Sequence[Command], remedy: Callable[[], object] = nothing, **options: Any
    ) -> Outcome:
        """Wait for the end of these commands, and resume the run unless it is done.

        remedy   what a user does before
        options  of `start`
        """
        codes = tuple(command.wait() for command in commands)
        output = "".join(command.output for command in commands)
        state = state_of(self.visible).state
        remedy()
        ranks = len(commands)
        if state != "done":
            resumed = self.start(**{"ranks": ranks, **options})
            if any([command.wait() for command in resumed]):
                return Outcome(codes, output, state, f"no: {''.join(command.output for command in resumed)}")
        return Outcome(codes, output, state, self.difference(ranks))

    def difference(self, ranks: int = 1) -> str:
        """How metrics and weights differ from those of a run without a fault; EXACT if they do not."""
        whole = self.setting.whole if ranks == 1 else self.setting.whole_of_two
        if json.loads((self.visible / "status.json").read_text())["state"] != "done":
            return "no: not done"
        pairs = [curve(whole), curve(self.visible)]
        first, second = (load_file(folder / "encoder.safetensors") for folder in (whole, self.visible))
        equal = all(torch.equal(first[name], second[name]) for name in first)
        if pairs[0] == pairs[1] and equal:
            return EXACT
        losses = [{row["step"]: row["loss"] for row in rows} for rows in pairs]
        missing = len(losses[0].keys() - losses[1].keys())
        largest = max(
            abs(losses[1][step] / losses[0][step] - 1) for step in losses[0].keys() & losses[1].keys()
        )
        rows = f", {missing} rows of metrics missing" if missing else ""
        return f"{'weights to the bit' if equal else 'up to rounding'}, losses within {largest:.0e}{rows}"

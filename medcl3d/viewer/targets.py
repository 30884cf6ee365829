"""What `view` can show: a store, a finished run, or the finished runs of a comparison."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from medcl3d.core.errors import ConfigError
from medcl3d.downstream.predict.predictor import WEIGHTS as MODEL
from medcl3d.downstream.run_weights import WEIGHTS as ENCODER
from medcl3d.downstream.run_weights import unfinished

REMEDY = "use a prepared store, the folder of a finished run, or the out_dir of a comparison"


@dataclass(frozen=True)
class Arm:
    """The finished runs of one name, of which one may be None."""

    name: str
    pretraining: Path | None = None
    finetuning: Path | None = None

    @property
    def runs(self) -> tuple[Path, ...]:
        """The run folders."""
        return tuple(run for run in (self.pretraining, self.finetuning) if run is not None)


def is_store(target: Path) -> bool:
    """Whether a folder has a prepared store."""
    return (target / "prepared.json").is_file()


def arms_of(target: Path) -> list[Arm]:
    """The arm of a run folder, or all arms of a comparison with a finished run.

    ConfigError if there is none.
    """
    if not target.is_dir():
        raise ConfigError(problem="no such folder", remedy=REMEDY, place=target)
    if (target / "config.yaml").is_file():
        return [_arm_of_run(target)]
    arms: dict[str, Arm] = {}
    for command, weights in (("pretrain", ENCODER), ("finetune", MODEL)):
        for name, run in _first_runs(target / command, weights):
            arm = arms.get(name, Arm(name))
            arms[name] = (
                replace(arm, pretraining=run) if command == "pretrain" else replace(arm, finetuning=run)
            )
    if arms:
        return list(arms.values())
    if (target / "pretrain").is_dir() or (target / "finetune").is_dir():
        raise ConfigError(problem="no run of this comparison is finished", remedy="wait", place=target)
    raise ConfigError(problem="not a store, a run or a comparison", remedy=REMEDY, place=target)


def _arm_of_run(run: Path) -> Arm:
    if (run / MODEL).is_file():
        return Arm(run.name, finetuning=run)
    if (run / ENCODER).is_file():
        return Arm(run.name, pretraining=run)
    if (run / "results.json").is_file():
        problem, remedy = (
            "this run has no weights (an evaluation)",
            "use the pretraining, `init` in its config.yaml",
        )
        raise ConfigError(problem=problem, remedy=remedy, place=run)
    raise ConfigError(problem=f"has no weights, {unfinished(run) or 'the run has not finished'}", place=run)


def _first_runs(folder: Path, weights: str) -> Iterator[tuple[str, Path]]:
    """The first finished run of each name, in the order of their paths."""
    for named in sorted(path for path in folder.glob("*") if path.is_dir()):
        run = next((path.parent for path in sorted(named.rglob(weights))), None)
        if run is not None:
            yield named.name, run

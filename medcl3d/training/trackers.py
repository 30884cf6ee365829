"""Trackers: programs that plot the metrics of a run while it trains."""

from __future__ import annotations

import html
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from medcl3d.core.errors import ConfigError
from medcl3d.io.atomic import write_text

TrackerName = Literal["tensorboard", "mlflow", "wandb"]
PROJECT = "medcl3d"
"""The experiment (MLflow) or project (Weights & Biases) of all runs, unless the environment names one."""
METRIC_GROUPS = {
    "pairs": (
        "positives_per_anchor", "anchors_without_positive", "effective_negatives", "fraction_ignored",
        "mean_positive", "mean_negative",
    ),
    "features": ("alignment", "uniformity", "effective_rank", "feature_std"),
    "optimizer": ("lr", "gradient_norm"),
    "speed": ("samples_per_s", "data_wait", "peak_memory_mb"),
}  # fmt: skip
"""Groups of metrics in trackers; others are in `loss`, or in the group in front of their ``/``."""
LONGEST_PARAMETER = 6000
PARAMETERS_AT_ONCE = 100


class Tracker(Protocol):
    """What a run needs of a tracker. `step` counts finished steps."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add numbers; their names have a group, as in ``loss/loss``."""

    def text(self, name: str, text: str, step: int) -> None:
        """Add one text."""

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """Add a picture ``uint8[H, W, 3]``."""

    def close(self, failed: bool) -> None:
        """Write all that is left."""


class TensorBoard:
    """Event files in OUT/tensorboard."""

    def __init__(self, folder: Path, config: Mapping[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        _hide_errors_of_its_thread()
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One scalar per name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def text(self, name: str, text: str, step: int) -> None:
        """A text of the Text tab."""
        self._writer.add_text(name, text, step)

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """A picture of the Images tab."""
        self._writer.add_image(name, image, step, dataformats="HWC")

    def close(self, failed: bool) -> None:
        """Flush the event file."""
        self._writer.close()


@cache
def _hide_errors_of_its_thread() -> None:
    """Print no traceback if TensorBoard's thread cannot write: its writer then raises the same error."""
    former = threading.excepthook

    def hook(found: threading.ExceptHookArgs) -> None:
        if not type(found.thread).__module__.startswith("tensorboard."):
            former(found)

    threading.excepthook = hook


class MLflow:
    """One MLflow run, in the store of MLFLOW_TRACKING_URI (MLflow's default: mlflow.db in this directory).

    The experiment is MLFLOW_EXPERIMENT_NAME, or `PROJECT`. A resumed run continues the MLflow run whose id is
    in OUT/mlflow_run.txt.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        self._client: Any = MlflowClient()
        self._run = self._resumed(folder / "mlflow_run.txt") or self._new(folder, config)
        write_text(folder / "mlflow_run.txt", self._run)
        self._client.set_terminated(self._run, "RUNNING")

    def _resumed(self, file: Path) -> str | None:
        from mlflow.exceptions import MlflowException

        try:
            return str(self._client.get_run(file.read_text(encoding="utf-8").strip()).info.run_id)
        except (OSError, MlflowException):  # the first start of this run, or another store
            return None

    def _new(self, folder: Path, config: Mapping[str, Any]) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        run = str(self._client.create_run(experiment, run_name=str(folder)).info.run_id)
        given = [Param(key, value[:LONGEST_PARAMETER]) for key, value in parameters(config).items()]
        for first in range(0, len(given), PARAMETERS_AT_ONCE):
            self._client.log_batch(run, params=given[first : first + PARAMETERS_AT_ONCE])
        return run

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One request for all metrics of a step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, metrics=[Metric(k, v, now, step) for k, v in values.items()])

    def text(self, name: str, text: str, step: int) -> None:
        """An artefact NAME/STEP.txt."""
        self._client.log_text(self._run, text, f"{name}/{step}.txt")

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """An artefact NAME/STEP.png."""
        self._client.log_image(self._run, image, f"{name}/{step}.png")

    def close(self, failed: bool) -> None:
        """Mark the MLflow run as finished or failed."""
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


class WandB:
    """One run of Weights & Biases in OUT/wandb, offline unless WANDB_MODE is set.

    The project is WANDB_PROJECT, or `PROJECT`. `wandb sync` sends offline runs. A resumed run has the id in
    OUT/wandb_run.txt, so that its parts become one run.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb = wandb
        file = folder / "wandb_run.txt"
        run_id = file.read_text(encoding="utf-8").strip() if file.is_file() else uuid.uuid4().hex
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=str(folder),
            dir=folder,
            id=run_id,
            resume="allow",
            config=dict(config),
            mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
            settings=wandb.Settings(silent=True, console="off"),
        )
        # A resumed run repeats steps after its checkpoint; wandb's own step must not fall.
        self._run.define_metric("*", step_metric="step")
        write_text(file, run_id)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One row of the history."""
        self._run.log({**values, "step": step})

    def text(self, name: str, text: str, step: int) -> None:
        """A row with a text."""
        self._run.log({name: self._wandb.Html(html.escape(text), inject=False), "step": step})

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """A row with a picture."""
        self._run.log({name: self._wandb.Image(image), "step": step})

    def close(self, failed: bool) -> None:
        """Write the summary, with exit code 1 if the run failed."""
        self._run.finish(exit_code=int(failed))


TRACKERS: dict[TrackerName, Callable[[Path, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
}


def tracked_name(name: str) -> str:
    """The name of a metric in trackers: its group and its name."""
    group = next((group for group, names in METRIC_GROUPS.items() if name in names), "loss")
    return name if "/" in name else f"{group}/{name}"


def check_trackers(names: tuple[TrackerName, ...]) -> None:
    """ConfigError if the package of a tracker is not installed."""
    for name in names:
        found = find_spec(name)
        if found is None or found.origin is None:  # a folder of that name has no origin
            problem, remedy = f"{name} is not installed", f"pip install 'medcl3d[{name}]', or leave it out"
            raise ConfigError("train.trackers", list(names), problem, remedy)


def parameters(config: Mapping[str, Any], where: str = "") -> dict[str, str]:
    """The fields of a configuration: dotted path -> value as text."""
    found: dict[str, str] = {}
    for name, value in config.items():
        nested = isinstance(value, Mapping) and value
        found |= parameters(value, f"{where}{name}.") if nested else {f"{where}{name}": str(value)}
    return found

"""The run folder: configuration, provenance, metrics, warnings and status of a run."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save as to_safetensors
from torch import nn

from medcl3d.config.plain import plain
from medcl3d.core.errors import MachineError, UserError
from medcl3d.distributed.collectives import from_rank_zero, rank, say
from medcl3d.distributed.precision import Precision, precision_used, tf32_used
from medcl3d.io.atomic import append_line, open_atomic, remove_partial_files, write_json, write_text
from medcl3d.io.folder_lock import lock_folder
from medcl3d.io.json_file import read_record
from medcl3d.objectives.diagnostics import Watch
from medcl3d.store.fingerprints import fingerprints
from medcl3d.store.store import Store
from medcl3d.training.run_record import START_HASH, open_record
from medcl3d.training.trackers import TRACKERS, Tracker, TrackerName, tracked_name

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

NAMES = {"pretrain": "pretraining", "finetune": "fine-tuning", "evaluate": "evaluation"}
WEIGHTS_HASH = "weights_sha256"

FORMER_METRICS = {"fraction_left_alone": "fraction_ignored"}
"""Names of metrics in run folders of version 0.1: present names."""


class RunFolder:
    """The folder of one run. Only rank 0 writes; on other ranks, the methods do nothing."""

    def __init__(
        self,
        path: Path,
        finished: bool,
        trackers: Sequence[TrackerName] = ("tensorboard",),
        config: Mapping[str, Any] | None = None,
    ):
        self.path, self.finished = path, finished
        self._names, self._config = trackers, config or {}
        self._trackers: dict[TrackerName, Tracker] = {}
        self._off: set[str] = set()
        self._watch = Watch()

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one row to metrics.jsonl and to the trackers. `step` counts finished steps.

        Training continues if they cannot be written (a full disk): a warning is printed once.
        """
        if rank() != 0:
            return
        row = {"step": step, **{name: float(value) for name, value in metrics.items()}}
        with self._optional("metrics.jsonl"):
            append_line(self.path / "metrics.jsonl", json.dumps(row))
        with self._optional("status.json"):
            self.status("running", step)
        scalars = {tracked_name(name): value for name, value in row.items() if name != "step"}
        self._track(lambda tracker: tracker.scalars(scalars, step))
        for text in self._watch.look(row):
            self.warn(step, text)

    def warn(self, step: int, text: str) -> None:
        """Print a warning, and append it to warnings.txt and the trackers."""
        line = f"step {step}: {text}"
        print(f"{self.path}: warning: {line}", file=sys.stderr, flush=True)
        with self._optional("warnings.txt"):
            append_line(self.path / "warnings.txt", line)
        self._track(lambda tracker: tracker.text("warnings", line, step))

    def picture(self, name: str, image: np.ndarray, step: int = 0) -> None:
        """Write a picture ``uint8[H, W, 3]`` to pictures/NAME.png and the trackers."""
        if rank() != 0:
            return
        from matplotlib.image import imsave

        content = BytesIO()
        imsave(content, image, format="png")
        with self._optional("pictures"):
            (self.path / "pictures").mkdir(exist_ok=True)
            with open_atomic(self.path / "pictures" / f"{name}.png") as file:
                file.write(content.getvalue())
        self._track(lambda tracker: tracker.image(name, image, step))

    def weights(self, name: str, module: nn.Module, sidecar: Mapping[str, Any]) -> None:
        """Write the weights of a module to NAME.safetensors, and their metadata to NAME.json."""
        tensors = {key: tensor.contiguous().cpu() for key, tensor in module.state_dict().items()}
        content = to_safetensors(tensors, metadata={"format": "pt"})
        with open_atomic(self.path / f"{name}.safetensors") as file:
            file.write(content)
        write_json(self.path / f"{name}.json", {WEIGHTS_HASH: hashlib.sha256(content).hexdigest(), **sidecar})

    def _track(self, write: Callable[[Tracker], None]) -> None:
        """Write to each tracker; one that fails is switched off for this run."""
        for name in self._names:
            if name in self._off:
                continue
            with self._optional(name, (Exception,)):  # a tracker may fail in any way: a server, a database
                if name not in self._trackers:
                    self._trackers[name] = TRACKERS[name](self.path, self._config)
                write(self._trackers[name])

    @contextmanager
    def _optional(
        self, name: str, errors: tuple[type[Exception], ...] = (OSError, MachineError)
    ) -> Iterator[None]:
        """An output without which training continues: warn once if it cannot be written."""
        try:
            yield
        except errors as error:
            if name not in self._off:
                self._off.add(name)
                cause = error.__cause__ if isinstance(error, MachineError) else error
                reason = getattr(cause, "strerror", None) or " ".join(str(error).split())
                problem = f"cannot be written ({reason}); the run continues without it"
                print(f"{self.path / name}: warning: {problem}", file=sys.stderr, flush=True)

    def status(self, state: str, step: int, reason: str = "") -> None:
        """Write status.json. state: running, done, stopped or failed."""
        if rank() == 0:
            content = {
                "state": state,
                "step": step,
                "reason": reason,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            }
            write_text(self.path / "status.json", json.dumps(content, indent=1) + "\n")

    def remove_rows_after(self, step: int) -> None:
        """Remove logged rows after `step`: the resumed run writes them again."""
        file = self.path / "metrics.jsonl"
        if rank() != 0 or not file.exists():
            return
        kept = [
            line
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines()
            if _step_of(line) <= step
        ]
        write_text(file, "".join(line + "\n" for line in kept))

    def close(self, failed: bool = False) -> None:
        """Write what the trackers still hold."""
        for name, tracker in self._trackers.items():
            with self._optional(name, (Exception,)):
                tracker.close(failed)
        self._trackers = {}


def metrics_row(line: str) -> dict[str, float]:
    """One row of metrics.jsonl, with former metric names replaced by the present ones."""
    return {FORMER_METRICS.get(name, name): value for name, value in json.loads(line).items()}


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a kill may have cut the last line
        return float("inf")


def read_status(path: Path) -> dict[str, Any]:
    """Read status.json of a run; {} if it does not exist. DataError if it is damaged."""
    return read_record(path / "status.json")


@contextmanager
def run_folder(
    path: Path, config: Mapping[str, Any], provenance: Mapping[str, Any], model: type[Any] | None = None
) -> Iterator[RunFolder]:
    """Open a run folder, new or to resume with the same configuration.

    provenance  fingerprints of the data that the run reads, and other facts known at the start
    model       class of the configuration; its defaults apply to fields that an older run does not have

    A run may continue with more `train.steps`, a finished one too; provenance.json lists them as `extended`,
    since its first steps followed the schedule of fewer. ConfigError if the folder holds a run with another
    configuration (names the fields) or other data (names the parts), if it started from other weights, if its
    checkpoints were trained in another precision, or if another process uses it. MachineError if it cannot be
    written. If an exception is raised inside, status.json gets `failed` and the reason.
    """
    lock = lock_folder(path, ".lock", lambda: read_status(path), "in this folder") if rank() == 0 else None
    try:
        if lock is not None:
            remove_partial_files(path)
        opened = from_rank_zero(_opened(path, config, provenance, model) if rank() == 0 else None)
        if isinstance(opened, UserError):
            raise opened
        trackers = config.get("train", {}).get("trackers", ("tensorboard",))
        run = RunFolder(path, opened, trackers, config)
        try:
            yield run
        except BaseException as error:
            status = read_status(path)
            if status.get("state") == "running":
                run.status("failed", status.get("step", 0), f"{type(error).__name__}: {error}")
            run.close(failed=True)
            raise
        run.close()
    finally:
        if lock is not None:
            lock.release()


@contextmanager
def run_of(
    config: DataclassInstance,
    out_dir: Path,
    store: Store,
    kind: str,
    precision: Precision,
    device: torch.device,
    start: str | None = None,
) -> Iterator[RunFolder | None]:
    """The run folder of a configuration; None if the run is done, which is reported.

    kind   pretrain, finetune or evaluate
    start  hash of what the run starts from that its configuration does not determine: the weights of `init`,
           or a module from Python
    """
    provenance = {**fingerprints(store), "kind": kind, "precision": precision_used(precision, device)}
    if start is not None:
        provenance[START_HASH] = start
    if (train := getattr(config, "train", None)) is not None:
        provenance["tf32"] = tf32_used(train.tf32, device)
    with run_folder(out_dir, plain(config), provenance, model=type(config)) as run:
        if run.finished:
            say(f"{out_dir}: this {NAMES[kind]} is done; remove the folder to repeat it")
        yield None if run.finished else run


def _opened(*arguments: Any) -> bool | UserError:
    """Result of `open_record`, or its error, which all ranks then raise."""
    try:
        return open_record(*arguments)
    except UserError as error:
        return error

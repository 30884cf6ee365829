"""MLflow and Weights & Biases receive what TensorBoard receives, in local stores."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medcl3d.core.errors import ConfigError
from medcl3d.training import trackers
from medcl3d.training.options import FitOptions, check_options
from medcl3d.training.run_folder import RunFolder, run_folder

CONFIG: dict[str, Any] = {"seed": 3, "encoder": {"unet3d": {"channels": [4, 8]}}, "train": {"steps": 10}}
PICTURE = np.zeros((8, 8, 3), dtype=np.uint8)


def config_with(*names: str) -> dict[str, Any]:
    return {**CONFIG, "train": {**CONFIG["train"], "trackers": list(names)}}


def fields(config: dict[str, Any]) -> dict[str, str]:
    return trackers.parameters(config)


def test_parameters_are_dotted_paths() -> None:
    given = {"a": {"b": {"c": 1}, "d": {}}, "e": [1, 2], "f": None}
    assert fields(given) == {"a.b.c": "1", "a.d": "{}", "e": "[1, 2]", "f": "None"}


def test_a_run_writes_to_mlflow_and_a_resumed_one_continues_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    config = config_with("mlflow")
    with run_folder(tmp_path / "run", config, {}) as run:
        run.log(1, {"loss": 0.5, "lr": 0.25})
        run.warn(1, "the loss is flat")
        run.picture("pairs", PICTURE)
    with pytest.raises(RuntimeError), run_folder(tmp_path / "run", config, {}) as run:
        run.log(2, {"loss": 0.4})
        raise RuntimeError
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("medcl3d")
    (found,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(found.info.run_id, "loss/loss")
    assert [(one.step, one.value) for one in history] == [(1, 0.5), (2, 0.4)]
    assert found.data.metrics["optimizer/lr"] == 0.25
    assert found.data.params == fields(config)
    assert found.info.run_name == str(tmp_path / "run")
    assert found.info.status == "FAILED"
    assert {one.path for one in client.list_artifacts(found.info.run_id)} == {"warnings", "pairs"}
    assert not (tmp_path / "run" / "tensorboard").exists()


WANDB_RUN = """
import sys
from pathlib import Path
import numpy as np
from medcl3d.training.run_folder import run_folder
for step in (1, 2):
    with run_folder(Path("run"), {"seed": 3, "train": {"steps": 10, "trackers": ["wandb"]}}, {}) as run:
        run.log(step, {"loss": 0.5 / step, "lr": 0.25})
        run.warn(step, "the loss is <flat>")
        run.picture("pairs", np.zeros((8, 8, 3), dtype=np.uint8), step)
"""


def test_a_run_writes_to_wandb_offline_under_one_id(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    done = subprocess.run(
        [sys.executable, "-c", WANDB_RUN],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout == ""
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    (run_id,) = {file.stem.removeprefix("run-") for file in files}
    assert run_id == (tmp_path / "run" / "wandb_run.txt").read_text()
    records = [record for file in files for record in history_of(file)]
    assert [(one["step"], one["loss/loss"]) for one in records if "loss/loss" in one] == [(1, 0.5), (2, 0.25)]
    assert sum("pairs.path" in one for one in records) == 2
    assert sum("warnings.path" in one for one in records) == 2


def history_of(file: Path) -> list[dict[str, Any]]:
    """Rows of the history in a .wandb file."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for content in leveldb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        if items := record.history.item:
            found.append({one.key or ".".join(one.nested_key): json.loads(one.value_json) for one in items})
    return found


def leveldb_records(content: bytes) -> list[bytes]:
    """Records of a LevelDB log behind wandb's header of 7 bytes: blocks of 32 KiB with parts of records.

    A part has a header of 7 bytes (checksum, length, kind): 1 whole, 2 first, 3 middle, 4 last.
    """
    records, at, parts = [], 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # the rest of a block is padding
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            records.append(parts)
            parts = b""
    return records


class Broken:
    """A tracker whose server does not answer."""

    def __init__(self, folder: Path, config: dict[str, Any]):
        raise ValueError("no answer\nfrom the server")


def test_a_tracker_that_fails_is_reported_once_and_the_run_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", Broken)  # type: ignore[arg-type]
    run = RunFolder(tmp_path, False, ["mlflow"])
    run.log(1, {"loss": 0.5})
    run.log(2, {"loss": 0.4})
    run.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert capsys.readouterr().err == (
        f"{tmp_path / 'mlflow'}: warning: cannot be written (no answer from the server); the run continues "
        "without it\n"
    )


def test_a_tracker_that_is_not_installed_is_refused_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: ModuleSpec(name, None))  # a folder named wandb
    options = FitOptions(steps=1, samples_per_step=1, trackers=("wandb",))
    with pytest.raises(
        ConfigError, match=r"trackers.*wandb is not installed; pip install 'medcl3d\[wandb\]'"
    ):
        check_options(options)

"""The run folder writes metrics and status, refuses another configuration or other data, and resumes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medcl3d.config.loading import parse
from medcl3d.config.plain import plain
from medcl3d.core.errors import ConfigError, DataError, MachineError
from medcl3d.io.atomic import append_line
from medcl3d.training import run_record
from medcl3d.training.options import FitOptions
from medcl3d.training.run_folder import metrics_row, read_status, run_folder

CONFIG = {"seed": 0, "train": {"steps": 10, "workers": 0}}


def test_a_former_metric_name_is_read_as_the_present_one() -> None:
    present = {"step": 1, "fraction_ignored": 0.5}
    assert metrics_row('{"step": 1, "fraction_left_alone": 0.5}') == present
    assert metrics_row(json.dumps(present)) == present


def test_a_row_is_written_to_json_and_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with run_folder(tmp_path / "run", CONFIG, {"data": "a"}) as run:
        run.log(3, {"loss": 0.5, "lr": 0.25, "probe/auroc": 0.75, "effective_rank": 2})
    row = {"step": 3, "loss": 0.5, "lr": 0.25, "probe/auroc": 0.75, "effective_rank": 2}
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text()) == row
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found == {
        "loss/loss": [(3, 0.5)],
        "optimizer/lr": [(3, 0.25)],
        "probe/auroc": [(3, 0.75)],
        "features/effective_rank": [(3, 2)],
    }


def test_another_configuration_is_refused_field_by_field(tmp_path: Path) -> None:
    with run_folder(tmp_path, CONFIG, {"data": "a"}):
        pass
    other = {"seed": 1, "train": {"steps": 20, "workers": 2}}
    with (
        pytest.raises(ConfigError, match=r"seed: 0 -> 1; train.steps: 10 -> 20\)"),
        run_folder(tmp_path, other, {"data": "a"}),
    ):
        pass


def test_other_data_is_refused(tmp_path: Path) -> None:
    with run_folder(tmp_path, CONFIG, {"data": "a"}):
        pass
    with pytest.raises(ConfigError, match="the data changed"), run_folder(tmp_path, CONFIG, {"data": "b"}):
        pass


def test_a_changed_manifest_or_split_is_refused_by_name(tmp_path: Path) -> None:
    start = {"data": "a", "body": "b", "manifest": {"age": "1", "sex": "2"}, "split": "s"}
    with run_folder(tmp_path, CONFIG, start):
        pass
    other = {**start, "manifest": {"age": "3", "sex": "2", "site": "4"}, "split": "t"}
    words = (
        "since this run started: split.json, the column age of manifest.csv; set another out_dir, or prepare"
    )
    with pytest.raises(ConfigError, match=words), run_folder(tmp_path, CONFIG, other):
        pass
    with run_folder(tmp_path, CONFIG, {**start, "manifest": {**start["manifest"], "site": "4"}}):  # type: ignore[dict-item]
        pass  # the run did not read the new column


def test_a_run_without_a_hash_of_the_manifest_resumes(tmp_path: Path) -> None:
    with run_folder(tmp_path, CONFIG, {"data": "a"}):
        pass
    now = {"data": "a", "body": "b", "manifest": {"age": "1"}, "split": "s"}
    with run_folder(tmp_path, CONFIG, now):
        pass
    kept = json.loads((tmp_path / "provenance.json").read_text())
    assert now.items() <= kept.items() and {
        "versions",
        "python",
        "commit",
        "dirty",
        "device",
        "threads",
        "command",
    } <= set(kept)


def test_fields_without_effect_on_training_may_change(tmp_path: Path) -> None:
    with run_folder(tmp_path, CONFIG, {"data": "a"}):
        pass
    with run_folder(tmp_path, {"seed": 0, "train": {"steps": 10, "workers": 2}}, {"data": "a"}) as run:
        assert not run.finished


def test_missing_fields_of_an_older_run_have_their_defaults(tmp_path: Path) -> None:
    today = plain(parse({"steps": 10, "samples_per_step": 2}, FitOptions, "test"))
    then = {
        name: value for name, value in today.items() if name not in ("optimizer", "layer_decay", "compile")
    }
    with run_folder(tmp_path, then, {"data": "a"}):
        pass
    other = {**today, "optimizer": "sgd"}
    with (
        pytest.raises(ConfigError, match=r"\(optimizer: 'adamw' -> 'sgd'\)"),
        run_folder(tmp_path, other, {"data": "a"}, model=FitOptions),
    ):
        pass
    with run_folder(tmp_path, today, {"data": "a"}, model=FitOptions):
        pass
    (tmp_path / "config.yaml").write_text("{steps: 10, samples_per_step: 2, gone: 1}")
    with (
        pytest.raises(ConfigError, match=r"gone: 1 -> None"),
        run_folder(tmp_path, today, {"data": "a"}, model=FitOptions),
    ):
        pass


def test_the_reason_of_an_error_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError), run_folder(tmp_path, CONFIG, {"data": "a"}) as run:
        run.status("running", 4)
        raise ValueError("the disk failed")
    status = read_status(tmp_path)
    assert status["state"] == "failed" and status["step"] == 4 and "the disk failed" in status["reason"]


def test_rows_after_the_checkpoint_and_incomplete_lines_are_removed(tmp_path: Path) -> None:
    with run_folder(tmp_path, CONFIG, {"data": "a"}) as run:
        for step in (1, 2, 3):
            run.log(step, {"loss": 1.0})
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 4, "lo')
        run.remove_rows_after(2)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        1,
        2,
    ]


HOLD = """
import sys, time
from pathlib import Path
from medcl3d.training.run_folder import run_folder
with run_folder(Path(sys.argv[1]), {"seed": 0}, {"data": "a"}) as run:
    run.status("running", 0)
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_runs_in_one_folder_are_refused_with_the_holder(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with (
            pytest.raises(ConfigError, match=rf"pid {process.pid} on .* is running in this folder"),
            run_folder(tmp_path, {"seed": 0}, {"data": "a"}),
        ):
            pass
    finally:
        process.kill()
        process.wait()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(MachineError, match=r"file/run: cannot be written"),
        run_folder(tmp_path / "file" / "run", CONFIG, {"data": "a"}),
    ):
        pass


def test_more_steps_extend_a_run_and_fewer_are_refused(tmp_path: Path) -> None:
    def with_steps(steps: int) -> dict[str, object]:
        return {"seed": 0, "train": {"steps": steps, "workers": 0}}

    with run_folder(tmp_path, with_steps(10), {"data": "a"}) as run:
        run.status("done", 10)
    with run_folder(tmp_path, with_steps(20), {"data": "a"}) as run:
        assert not run.finished
        run.status("done", 20)
    assert json.loads((tmp_path / "provenance.json").read_text())["extended"] == [[10, 20]]
    with run_folder(tmp_path, with_steps(20), {"data": "a"}) as run:
        assert run.finished
    with (
        pytest.raises(ConfigError, match=r"train.steps: 20 -> 15"),
        run_folder(tmp_path, with_steps(15), {"data": "a"}),
    ):
        pass


def test_a_run_does_not_continue_in_another_precision(tmp_path: Path) -> None:
    """As on a device without bfloat16, where `auto` is another precision than before."""

    def start(field: str, used: str) -> bool:
        config = {"seed": 0, "train": {"steps": 10, "workers": 0, "precision": field}}
        with run_folder(tmp_path, config, {"data": "a", "precision": used}) as run:
            return run.finished

    start("auto", "bfloat16")
    start("auto", "float32")  # nothing was trained yet
    start("auto", "bfloat16")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_00000005.pt").touch()
    message = (
        r"trained in bfloat16 so far, and would continue in float32 on this device;.* train.precision=bf"
    )
    with pytest.raises(ConfigError, match=message):
        start("auto", "float32")
    with pytest.raises(ConfigError, match=r"train.precision: 'auto' -> 'float32'"):
        start("float32", "float32")
    start("bfloat16", "bfloat16")
    start("auto", "bfloat16")  # on the first device again
    with run_folder(tmp_path, {"seed": 0, "train": {"steps": 10, "workers": 0, "precision": "auto"}},
                    {"data": "a", "precision": "bfloat16"}) as run:  # fmt: skip
        run.status("done", 10)
    assert start("auto", "float32"), "a finished run is not repeated"


def test_what_a_kill_left_of_atomic_writes_is_removed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    left = [
        tmp_path / ".encoder.safetensors.x1.part",
        tmp_path / "checkpoints" / ".step_00000001.pt.x2.part",
    ]
    for path in left:
        path.touch()
    with run_folder(tmp_path, CONFIG, {"data": "a"}):
        assert not any(path.exists() for path in left)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full (Linux)")
def test_a_full_disk_for_metrics_is_a_warning_and_the_run_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with run_folder(tmp_path, CONFIG, {"data": "a"}) as run:
        run.log(1, {"loss": 1.0})
        for name in ("metrics.jsonl", "warnings.txt"):
            (tmp_path / name).unlink(missing_ok=True)
            (tmp_path / name).symlink_to("/dev/full")
        monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", full)
        monkeypatch.setattr("medcl3d.training.run_folder.open_atomic", full)
        for step in (2, 3):
            run.log(step, {"loss": 1.0})
            run.warn(step, "text")
            run.picture("pairs", np.zeros((4, 4, 3), np.uint8), step)
        (tmp_path / "metrics.jsonl").unlink()
        run.log(4, {"loss": 1.0})
    errors = capsys.readouterr().err
    for name in ("metrics.jsonl", "warnings.txt", "tensorboard", "pictures"):
        words = f"{tmp_path / name}: warning: cannot be written (No space left on device); the run continues"
        assert errors.count(words) == 1
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["step"] == 4
    assert read_status(tmp_path)["step"] == 4


def test_a_row_after_an_incomplete_one_is_complete(tmp_path: Path) -> None:
    append_line(tmp_path / "a", "1")
    with (tmp_path / "a").open("a") as file:
        file.write("incompl")
    append_line(tmp_path / "a", "2")
    append_line(tmp_path / "a", "3")
    assert (tmp_path / "a").read_text() == "1\nincompl\n2\n3\n"


@pytest.mark.parametrize("name", ["status.json", "provenance.json", "config.yaml"])
@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[1, 2", b"\x00{'"])
def test_a_damaged_file_of_a_run_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    with run_folder(tmp_path, CONFIG, {"data": "a"}) as run:
        run.status("running", 1)
    (tmp_path / name).write_bytes(content)
    with (
        pytest.raises(DataError, match=rf"{name}.* is damaged .*delete its folder") as error,
        run_folder(tmp_path, CONFIG, {"data": "a"}),
    ):
        pass
    assert "\n" not in str(error.value)


def test_rows_that_are_not_objects_or_not_text_are_removed(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(
        b'{"step": 1}\n[1]\n3\n"x"\n\xff\xfe\n{"step": null}\n{"step": 2}\n'
    )
    with run_folder(tmp_path, CONFIG, {"data": "a"}) as run:
        run.remove_rows_after(2)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_the_environment_of_the_first_part_of_a_run_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, commit in enumerate("aabc"):
        monkeypatch.setattr(run_record, "versions", lambda commit=commit: {"commit": commit, "device": "cpu"})
        with run_folder(tmp_path, CONFIG, {"data": "a"}):
            (tmp_path / "checkpoints").mkdir(exist_ok=True)
            (tmp_path / "checkpoints" / f"{number}.pt").touch()
    found = json.loads((tmp_path / "provenance.json").read_text())
    assert found["commit"] == "c"
    assert found["earlier"] == [{"commit": name, "device": "cpu"} for name in "ab"]

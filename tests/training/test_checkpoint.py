"""Checkpoints are written atomically, and reading one runs no code."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from medcl3d.core.errors import ConfigError, MachineError
from medcl3d.training.checkpoint import TrainState, found, load, load_latest, save


def state(step: int) -> TrainState:
    return TrainState(
        step,
        {"weight": torch.full((4,), float(step))},
        {"state": {}, "param_groups": []},
        torch.get_rng_state(),
    )


def test_round_trip_and_only_the_last_two_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, state(step))
    assert [path.name for path in found(tmp_path)] == ["step_00000002.pt", "step_00000003.pt"]
    latest = load_latest(tmp_path)
    assert (
        latest is not None and latest.step == 3 and torch.equal(latest.model["weight"], torch.full((4,), 3.0))
    )


@pytest.mark.parametrize("share", [i / 20 for i in range(20)])
def test_a_truncated_checkpoint_is_skipped_with_a_warning(tmp_path: Path, share: float) -> None:
    save(tmp_path, state(1))
    path = save(tmp_path, state(2))
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.warns(UserWarning, match=r"step_00000002.pt: .*using the previous checkpoint"):
        latest = load_latest(tmp_path)
    assert latest is not None and latest.step == 1


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch owned",)


def test_a_pickle_that_runs_code_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"schema": 1, "model": Evil()}, tmp_path / "step_00000001.pt")
    with pytest.raises(ConfigError, match="no code was run"):
        load(tmp_path / "step_00000001.pt")
    assert not (tmp_path / "owned").exists()


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    torch.save({"schema": 99}, tmp_path / "a.pt")
    with pytest.raises(ConfigError, match="newer medcl3d"):
        load(tmp_path / "a.pt")


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_byte_is_noticed_and_set_aside(tmp_path: Path, seed: int) -> None:
    """Somewhere in the tensors, whose bytes torch reads without a check."""
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy(rng.normal(size=4096).astype(np.float32))
    save(tmp_path, state(1))
    path = save(tmp_path, TrainState(2, {"weight": weight}, {"state": {}}, torch.get_rng_state()))
    content = bytearray(path.read_bytes())
    place = content.index(weight.numpy().tobytes()) + int(rng.integers(4096 * 4))
    content[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"step_00000002.pt: .*using the previous checkpoint"):
        latest = load_latest(tmp_path)
    assert latest is not None and latest.step == 1
    assert [path.name for path in found(tmp_path)] == ["step_00000001.pt"]
    assert (tmp_path / "step_00000002.pt.damaged").exists()


def test_damaged_checkpoints_do_not_replace_new_ones(tmp_path: Path) -> None:
    for step in (5, 6):
        os.truncate(save(tmp_path, state(step)), 40)
    with pytest.warns(UserWarning):
        assert load_latest(tmp_path) is None
    for step in (1, 2, 3):
        save(tmp_path, state(step))
    assert [path.name for path in found(tmp_path)] == ["step_00000002.pt", "step_00000003.pt"]


def test_a_disk_that_fails_does_not_set_checkpoints_aside(tmp_path: Path) -> None:
    """Torch reports an input that cannot be read like a damaged file."""
    save(tmp_path, state(1))
    unreadable = tmp_path / "step_00000002.pt"
    unreadable.mkdir()  # its name can be found, and its bytes cannot be read
    with pytest.raises(MachineError, match=r"step_00000002.pt: cannot be read \(.*; it is kept"):
        load_latest(tmp_path)
    assert unreadable.exists() and (tmp_path / "step_00000001.pt").exists()


def test_too_little_memory_does_not_set_checkpoints_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, state(1))

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes.")

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(MachineError, match="main memory is full"):
        load_latest(tmp_path)
    assert path.exists()


def test_a_newer_checkpoint_is_refused_and_stays(tmp_path: Path) -> None:
    save(tmp_path, state(1))
    torch.save({"schema": 99}, tmp_path / "step_00000002.pt")
    with pytest.raises(ConfigError, match="newer medcl3d"):
        load_latest(tmp_path)
    assert (tmp_path / "step_00000002.pt").exists()


def test_a_checkpoint_without_a_checksum_is_read(tmp_path: Path) -> None:
    torch.save({"schema": 1, **vars(state(3))}, tmp_path / "step_00000003.pt")
    latest = load_latest(tmp_path)
    assert latest is not None and latest.step == 3


@pytest.mark.parametrize("name", ["model", "rng", "step"])
def test_a_checkpoint_without_one_of_its_parts_is_damaged(tmp_path: Path, name: str) -> None:
    save(tmp_path, state(1))
    content = {"schema": 1, **vars(state(2))}
    del content[name]
    torch.save(content, tmp_path / "step_00000002.pt")
    with pytest.warns(UserWarning, match=f"no {name}"):
        latest = load_latest(tmp_path)
    assert latest is not None and latest.step == 1


def test_a_full_disk_names_the_bytes_and_keeps_older_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, state(1))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(MachineError, match=r"No space left on device; .* needed, .* free\); free disk space"):
        save(tmp_path, state(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001.pt"]


def test_a_run_folder_that_was_deleted_is_not_written_again(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="gone: this folder was deleted during the run"):
        save(tmp_path / "gone" / "checkpoints", state(1))
    assert not (tmp_path / "gone").exists()


WRITER = """
import sys, torch
from pathlib import Path
from medcl3d.training.checkpoint import TrainState, save
step = 0
while True:
    step += 1
    state = TrainState(step, {"w": torch.full((200_000,), float(step))}, {}, torch.get_rng_state())
    save(Path(sys.argv[1]), state)
    print(step, flush=True)
"""


@pytest.mark.slow
def test_fifty_kills_during_writing_leave_a_readable_checkpoint(tmp_path: Path) -> None:
    for kill in range(50):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.002 * (kill % 10))
        process.kill()
        process.wait()
        latest = load_latest(tmp_path)
        assert latest is not None and (latest.model["w"] == latest.step).all()
        for path in found(tmp_path):
            path.unlink()

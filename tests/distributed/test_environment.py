"""The environment of a run is recorded if it can be determined; nothing fails otherwise."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import torch

from medcl3d.distributed import environment as machine
from medcl3d.distributed.environment import checkout, device_name
from medcl3d.distributed.precision import precision_used
from medcl3d.training.run_record import versions


def git(folder: Path, *command: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.invalid", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *identity, "-C", str(folder), *command], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_checkout_is_clean_until_a_tracked_file_changes(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert checkout(tmp_path) == {"commit": None, "dirty": None}, "no commit yet"
    (tmp_path / "a.py").write_text("one")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-qm", "one")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "log").write_text("not tracked")
    assert checkout(tmp_path) == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "a.py").write_text("two")
    assert checkout(tmp_path)["dirty"] is True


def test_without_git_or_without_a_checkout_the_commit_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = {"commit": None, "dirty": None}
    assert checkout(tmp_path) == nothing
    (tmp_path / ".git").mkdir()
    assert checkout(tmp_path) == nothing, "not a repository"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checkout(tmp_path) == nothing and checkout() == nothing, "git is missing"
    monkeypatch.undo()
    monkeypatch.setattr(machine, "GIT_SECONDS", 0.0)
    assert checkout() == nothing, "git takes too long"


def test_the_environment_is_recorded_without_the_host() -> None:
    found = versions()
    assert found["threads"] == torch.get_num_threads() and found["device"] == device_name() != ""
    if not torch.cuda.is_available():
        assert socket.gethostname() not in json.dumps(found)


def test_auto_precision_is_recorded_as_the_precision_used(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert (precision_used("float32", cpu), precision_used("bfloat16", cpu)) == ("float32", "bfloat16")
    for fast in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda fast=fast: fast)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda fast=fast: fast)
        assert precision_used("auto", cpu) == ("bfloat16" if fast else "float32")

"""A signal to one rank under torchrun: all ranks stop after the same step, and the run resumes bitwise."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.pretraining.test_pretrain import ENVIRONMENT, TOOL, config_of, curve, run, write

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
STEPS = 40


@pytest.fixture(scope="module")
def whole(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of two ranks."""
    folder = tmp_path_factory.mktemp("whole")
    run(
        [
            *TORCHRUN,
            str(TOOL),
            str(write(folder / "whole.yaml", config_of(tiny_store, folder / "run", steps=STEPS))),
        ]
    )
    return folder / "run"


def ranks_of(torchrun: int) -> list[int]:
    """Process ids of the ranks of a torchrun."""
    return [int(pid) for pid in Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads the ranks from /proc (Linux)")
@pytest.mark.parametrize(
    ("number", "of_rank_zero"),
    [pytest.param(signal.SIGTERM, False, marks=pytest.mark.slow), (signal.SIGUSR1, True)],
)
def test_a_signal_to_one_rank_stops_all(
    tiny_store: Path, tmp_path: Path, whole: Path, number: signal.Signals, of_rank_zero: bool
) -> None:
    out = tmp_path / "cut"
    command = [
        *TORCHRUN,
        str(TOOL),
        str(write(tmp_path / "cut.yaml", config_of(tiny_store, out, steps=STEPS))),
    ]
    process = subprocess.Popen(
        [sys.executable, *command],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        log = out / "metrics.jsonl"
        while process.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < 3):
            time.sleep(0.01)
        rank_zero = json.loads((out / "status.json").read_text())["pid"]
        ranks = ranks_of(process.pid)
        assert rank_zero in ranks and len(ranks) == 2
        os.kill(next(pid for pid in ranks if (pid == rank_zero) == of_rank_zero), number)
        _, errors = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    status = json.loads((out / "status.json").read_text())
    assert status["state"] == "stopped" and 3 <= status["step"] < STEPS
    assert status["step"] == len(curve(out)), "the last logged step was saved"
    assert (out / "checkpoints").is_dir() and any(
        str(status["step"]) in path.name for path in (out / "checkpoints").iterdir()
    )
    # torchrun exits with 1 if any worker does not exit with 0, and reports the exit code of each.
    assert process.returncode == 1 and "exitcode  : 75" in errors, errors
    run(command)
    assert curve(out) == curve(whole)
    first, second = (load_file(folder / "encoder.safetensors") for folder in (whole, out))
    assert all(torch.equal(first[name], second[name]) for name in first)


RANK_DIRECTORY = """
import os, sys
from pathlib import Path
from medcl3d.pretraining.pretrain import pretrain
shared, steps = sys.argv[2] == "shared", sys.argv[3]
out = Path(sys.argv[1]).parent / ("shared" if shared else "host_" + os.environ["RANK"])
pretrain(Path(sys.argv[1]), [f"out_dir={out}", f"train.steps={steps}"])
"""


@pytest.mark.slow
def test_hosts_without_a_common_disk_resume_from_the_checkpoint_of_rank_zero(
    tiny_store: Path, tmp_path: Path
) -> None:
    script, config = tmp_path / "rank.py", write(tmp_path / "c.yaml", config_of(tiny_store, tmp_path))
    script.write_text(RANK_DIRECTORY)
    for folders in ("shared", "separate"):
        for steps in ("6", "12"):
            done = run([*TORCHRUN, str(script), str(config), folders, steps])
        assert "resumed from step 6" in done.stdout
    assert not (tmp_path / "host_1" / "checkpoints").exists()
    assert curve(tmp_path / "shared") == curve(tmp_path / "host_0")
    first, second = (load_file(tmp_path / name / "encoder.safetensors") for name in ("shared", "host_0"))
    assert all(torch.equal(first[name], second[name]) for name in first)

"""The scripts for SLURM, with programs in place of its own: a job is stopped, queued again and resumed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pretraining.test_pretrain import config_of, curve, run, write

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "configs" / "slurm"
BIN = Path(sys.executable).parent
STEPS = 40

SCONTROL = f"""#!/bin/bash
case "$1 $2" in
    "show job") echo "   Command={SCRIPTS}/pretrain.sbatch WorkDir=/" ;;
    "show hostnames") echo localhost ;;
    "requeue $SLURM_JOB_ID") echo requeued >> "$REQUEUED" ;;
    *) exit 1 ;;
esac
"""
SRUN = """#!/bin/bash
export SLURM_NODEID=0
echo $$ > "$STEP_PID"
exec "$@"
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    fakes = tmp_path / "bin"
    fakes.mkdir()
    torchrun = f'#!/bin/bash\nexec {sys.executable} -m torch.distributed.run "$@"\n'
    medcl3d = f'#!/bin/bash\nexec {sys.executable} -m medcl3d "$@"\n'
    programs = {"scontrol": SCONTROL, "srun": SRUN, "torchrun": torchrun, "medcl3d": medcl3d}
    for name, text in programs.items():
        (fakes / name).write_text(text)
        (fakes / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{fakes}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "SLURM_JOB_ID": "7",
        "SLURM_NNODES": "1",
        "SLURM_JOB_NODELIST": "localhost",
        "PROCESSES_PER_NODE": "2",
        "MASTER_PORT": "29517",
        "REQUEUED": str(tmp_path / "requeued"),
        "STEP_PID": str(tmp_path / "step_pid"),
    }


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("bash") and shutil.which("pkill")), reason="needs bash and pkill")
def test_a_job_at_its_time_limit_saves_is_requeued_and_resumes(
    tiny_store: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    whole = config_of(tiny_store, tmp_path / "whole", steps=STEPS)
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run([*ranks, "-m", "medcl3d", "pretrain", str(write(tmp_path / "whole.yaml", whole))])
    cut = write(tmp_path / "cut.yaml", config_of(tiny_store, tmp_path / "cut", steps=STEPS))
    job = ["bash", str(SCRIPTS / "pretrain.sbatch"), str(cut)]
    process = subprocess.Popen(job, env=environment, start_new_session=True)
    log = tmp_path / "cut" / "metrics.jsonl"
    while process.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < 4):
        time.sleep(0.05)
    os.kill(int((tmp_path / "step_pid").read_text()), signal.SIGUSR1)  # as --signal=USR1 does
    assert process.wait(timeout=120) == 75
    assert (tmp_path / "requeued").read_text() == "requeued\n"
    assert 4 <= len(curve(tmp_path / "cut")) < STEPS
    assert subprocess.run(job, env=environment, timeout=300).returncode == 0
    assert (tmp_path / "requeued").read_text() == "requeued\n", "a finished job is not queued again"
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")


@pytest.mark.parametrize("name", ["pretrain.sbatch", "node.sh"])
def test_shellcheck_reports_nothing(name: str) -> None:
    shellcheck = shutil.which("shellcheck", path=str(BIN))
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: it has no package for this platform")
    done = subprocess.run([shellcheck, str(SCRIPTS / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout

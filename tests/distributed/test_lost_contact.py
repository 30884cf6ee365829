"""Ranks that wait for each other: for rank 0 without a limit, for a missing one with a message."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TORCHRUN = [
    "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
]  # fmt: skip
SCRIPT = """
import os, signal, sys, time
import torch
from medcl3d.core.errors import UserError
from medcl3d.distributed.collectives import all_sum, process_group, rank

try:
    with process_group(timeout_s=4) as device:
        print("sum", float(all_sum(torch.ones(()))), flush=True)
        if sys.argv[1] == "measures" and rank() == 0:
            time.sleep(9)  # more than the time limit: rank 0 works alone at the end
        if sys.argv[1] == "silent":
            if rank() == 1:
                time.sleep(30)
            all_sum(torch.ones(()))
except UserError as error:
    print(f"error of rank {os.environ['RANK']}: {error}", flush=True)
    sys.exit(error.exit_code)
"""


def run(folder: Path, case: str) -> subprocess.CompletedProcess[str]:
    (folder / "ranks.py").write_text(SCRIPT)
    return subprocess.run(
        [sys.executable, *TORCHRUN, str(folder / "ranks.py"), case],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.slow
def test_ranks_wait_for_rank_zero_beyond_the_time_limit(tmp_path: Path) -> None:
    done = run(tmp_path, "measures")
    assert done.returncode == 0 and done.stdout.count("sum 2.0") == 2, done.stderr


@pytest.mark.slow
def test_a_rank_that_does_not_answer_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    done = run(tmp_path, "silent")
    assert done.returncode == 1 and "exitcode  : 4" in done.stderr, done.stderr
    assert "error of rank 0: rank 0 waited 4 s for another rank" in done.stdout
    assert "the same commands resume" in done.stdout

"""The GPU of a rank, on pretended machines: this code has not run on a real GPU."""

from __future__ import annotations

import pytest
import torch

from medcl3d.core.errors import MachineError
from medcl3d.distributed.collectives import device_of_rank


def machine(monkeypatch: pytest.MonkeyPatch, gpus: int, local: int, **environment: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("SLURM_GPUS_PER_TASK", raising=False)
    for name, value in {"LOCAL_RANK": str(local), **environment}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("gpus", "local", "expected"), [(0, 3, "cpu"), (1, 0, "cuda:0"), (8, 5, "cuda:5")])
def test_each_rank_has_its_own_gpu(
    monkeypatch: pytest.MonkeyPatch, gpus: int, local: int, expected: str
) -> None:
    machine(monkeypatch, gpus, local)
    assert str(device_of_rank()) == expected


def test_a_slurm_task_that_sees_one_gpu_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 1, 3, SLURM_GPUS_PER_TASK="1")
    assert str(device_of_rank()) == "cuda:0"


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 2, 2)
    with pytest.raises(MachineError, match=r"LOCAL_RANK 2 has no GPU: 2 visible.*--nproc_per_node 2"):
        device_of_rank()

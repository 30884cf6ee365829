from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from medcl3d.core.errors import MachineError
from medcl3d.io.shared_memory import num_bytes, refuse_too_little
from medcl3d.sampling import batches as loader
from medcl3d.sampling.batches import batches_from

Status = namedtuple("Status", ["f_bavail", "f_frsize"])


class Cubes(Dataset[torch.Tensor]):
    """Items of 4 MB."""

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((1 << 20,), float(index))


def with_free_pages(monkeypatch: pytest.MonkeyPatch, num_pages: int) -> None:
    monkeypatch.setattr(os, "statvfs", lambda place: Status(num_pages, 4096))


def test_too_little_shared_memory_is_refused_before_workers_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free_pages(monkeypatch, 16)
    monkeypatch.setattr(loader, "DataLoader", lambda *_, **__: pytest.fail("workers were started"))
    message = (
        r"2 workers need 25\.2 MB in /dev/shm, 65\.5 kB are free; "
        r"in docker use --shm-size=8g, elsewhere train\.workers=0"
    )
    with pytest.raises(MachineError, match=message) as caught:
        next(batches_from(Cubes(), 4, 2, 0))
    assert "\n" not in str(caught.value) and caught.value.exit_code == 4


def test_the_exact_size_suffices_and_items_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free_pages(monkeypatch, 4 * 1024)  # 4 batches: two of one worker, and two more
    assert [int(item[0]) for item in batches_from(Cubes(), 4, 1, 1)] == [1, 2, 3]
    with_free_pages(monkeypatch, 4 * 1024 - 1)
    with pytest.raises(MachineError, match="shared memory"):
        next(batches_from(Cubes(), 4, 1, 1))
    assert [int(item[0]) for item in batches_from(Cubes(), 4, 0, 1)] == [1, 2, 3], (
        "a single process needs no shared memory"
    )


def test_all_ranks_of_a_machine_share_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free_pages(monkeypatch, 4 * 1024)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(MachineError, match="1 workers of 2 ranks need"):
        refuse_too_little(num_bytes(torch.zeros(1 << 20)), 1)


def test_a_system_without_dev_shm_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(place: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "statvfs", absent)
    refuse_too_little(1 << 40, 8)


def test_the_error_of_a_timeout_names_full_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Waiting:
        def __init__(self, *_: object, **__: object):
            with_free_pages(monkeypatch, 1)  # another program fills it

        def __iter__(self) -> Waiting:
            return self

        def __next__(self) -> None:
            raise RuntimeError("DataLoader timed out after 300 seconds")

    monkeypatch.setattr(loader, "DataLoader", Waiting)
    with pytest.raises(
        MachineError, match=r"timed out after 300 seconds: shared memory is full: a batch needs 4\.19 MB"
    ):
        list(batches_from(Cubes(), 4, 1, 0))


SMALL = """
mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$0" -c '
import sys, torch
from medcl3d.sampling.batches import batches_from
from medcl3d.core.errors import MachineError
from tests.io.test_shared_memory import Cubes
try:
    list(batches_from(Cubes(), 4, 2, 0))
except MachineError as error:
    print(error)
    sys.exit(error.exit_code)
'
"""


@pytest.mark.slow
def test_a_small_shared_memory_is_refused_at_once() -> None:
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode
    ):
        pytest.skip("this machine does not allow private mounts (unshare -m)")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", SMALL, sys.executable],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=root,
    )
    assert (
        done.returncode == 4
        and "shared memory is full or too small" in done.stdout
        and "Traceback" not in done.stderr
    )

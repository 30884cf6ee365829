"""Commands in forks of one process that has imported the package, so that each starts at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

LIMIT_S = 60.0
"""Seconds within which every fault must have ended its command."""
POLL_S = 0.005

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["tests.drills", "medcl3d.pretraining.pretrain", "torch.utils.tensorboard", "skimage.io"]
)


def nothing() -> None:
    """The default of what a process does before its command."""


class Command:
    """A function in a process of its own, which may print to a file `output`."""

    def __init__(self, function: Callable[..., object], arguments: Sequence[object], output: Path):
        self._output, self._from = output, output.stat().st_size if output.exists() else 0
        self._process = _FORKS.Process(target=function, args=tuple(arguments))
        self._process.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._process.exitcode is not None

    @property
    def output(self) -> str:
        """What it has printed."""
        content = self._output.read_bytes() if self._output.exists() else b""
        return content[self._from :].decode()

    @property
    def children(self) -> list[int]:
        """The processes that it started and that have not ended."""
        found = Path(f"/proc/{self.pid}/task").glob("*/children")
        return [int(pid) for path in found for pid in path.read_text().split()]

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process only."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End the process by SIGKILL."""
        self.send(signal.SIGKILL)
        self._process.join()

    def wait(self) -> int:
        """The exit code, or minus the number of the signal that ended it. AssertionError after `LIMIT_S`."""
        self._process.join(LIMIT_S)
        if self._process.exitcode is None:
            self.kill()
            raise AssertionError(f"no end within {LIMIT_S:g} s: {self.output}")
        return self._process.exitcode


def medcl3d(
    arguments: Sequence[str],
    output: Path,
    before: Callable[[], object] = nothing,
    environment: Mapping[str, str] | None = None,
) -> Command:
    """Start `medcl3d ARGUMENTS`.

    before       called in the process first; it must be picklable
    environment  further variables
    """
    return Command(_run, ([*arguments], output, before, dict(environment or {})), output)


def _run(
    arguments: list[str], output: Path, before: Callable[[], object], environment: dict[str, str]
) -> None:
    """In the new process: run the command."""
    with output.open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.setsid()
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # as in any other process
    before()
    from medcl3d.cli import main

    main(arguments)


def until(condition: Callable[[], bool], commands: Sequence[Command]) -> None:
    """Return once the condition holds. AssertionError if a command ends before, or after `LIMIT_S`."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > end or any(command.ended for command in commands):
            raise AssertionError("".join(command.output for command in commands))
        time.sleep(POLL_S)


def environments_of_ranks(number: int, host: str = "127.0.0.1") -> Iterator[dict[str, str]]:
    """The variables with which torchrun starts the ranks of one machine; none for a single process."""
    if number == 1:
        yield {}
        return
    with socket.socket() as free:
        free.bind(("", 0))
        port = str(free.getsockname()[1])
    for rank in map(str, range(number)):
        yield {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": str(number),
            "LOCAL_WORLD_SIZE": str(number),
            "MASTER_ADDR": host,
            "MASTER_PORT": port,
        }

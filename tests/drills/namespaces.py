"""Namespaces of Linux: disks and networks that only some processes see. They need root."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

KINDS = {"mnt": "--mount", "net": "--net"}


@cache
def allowed() -> bool:
    """Whether this machine allows them."""
    programs = all(map(shutil.which, ("unshare", "nsenter", "mount", "ip")))
    return (
        programs and not subprocess.run(["unshare", *KINDS.values(), "true"], capture_output=True).returncode
    )


class Namespace:
    """One namespace, of a process that waits in it. kind: mnt or net."""

    def __init__(self, kind: str):
        self._kind = kind
        self._holder = subprocess.Popen(
            ["unshare", KINDS[kind], "sh", "-c", "echo ready; exec sleep infinity"], stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None and self._holder.stdout.readline() == b"ready\n"

    @property
    def pid(self) -> int:
        """The process id of the waiting process."""
        return self._holder.pid

    def run(self, *command: str) -> None:
        """Run a program in it."""
        inside = ["nsenter", "--target", str(self.pid), KINDS[self._kind]]
        subprocess.run([*inside, *command], check=True, capture_output=True)

    def enter(self) -> partial[None]:
        """A function that puts the process that calls it into the namespace."""
        return partial(enter, self.pid, self._kind)

    def seen(self, path: Path) -> Path:
        """A path of the namespace, for processes outside."""
        return Path(f"/proc/{self.pid}/root{path}")

    def close(self) -> None:
        """End the namespace, with its disks or devices, once no other process is in it."""
        self._holder.kill()
        self._holder.communicate()


def enter(pid: int, kind: str) -> None:
    """Put this process into a namespace of another one."""
    descriptor = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, 0):
        raise OSError(ctypes.get_errno(), "setns")
    os.close(descriptor)


@contextmanager
def small_disk(path: Path, size: str, *options: str) -> Iterator[Namespace]:
    """Mount a disk of this size at a path, for the processes of a new namespace."""
    path.mkdir(exist_ok=True)
    disk = Namespace("mnt")
    try:
        disk.run("mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(path))
        yield disk
    finally:
        disk.close()


@contextmanager
def two_hosts() -> Iterator[tuple[Namespace, Namespace]]:
    """Two networks, joined by one cable `veth`; the first has the address `FIRST_HOST`."""
    hosts = Namespace("net"), Namespace("net")
    try:
        second = str(hosts[1].pid)
        hosts[0].run("ip", "link", "add", "veth", "type", "veth", "peer", "name", "veth", "netns", second)
        for host, address in zip(hosts, (FIRST_HOST, SECOND_HOST), strict=True):
            host.run("ip", "address", "add", f"{address}/24", "dev", "veth")
            for device in ("lo", "veth"):
                host.run("ip", "link", "set", device, "up")
        yield hosts
    finally:
        for host in hosts:
            host.close()


FIRST_HOST, SECOND_HOST = "10.77.0.1", "10.77.0.2"

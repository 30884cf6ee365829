"""Fetch a well-known set: resumed where it was cut, checked before anything is unpacked, left alone where it is there."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

import medcl3d
from medcl3d.data.known_sets import KnownSet, as_size
from medcl3d.data.room import free_bytes, nearest_folder, refuse_unwritable
from medcl3d.data.unpack import is_unpacked, require_space, unpack
from medcl3d.errors import DataError, MachineError

CHUNK = 1 << 20  # bytes
TIMEOUT_S = 60.0  # without a byte
ALL_THERE = 416  # HTTP: nothing lies behind what was asked for

Moved = Callable[[int], None]


def download(known: KnownSet, out: Path, say: Callable[[str], None]) -> Path:
    """Fetch a set into a folder and unpack it there. Returns where it lies, ready for `prepare`.

    A file that was put there by hand is taken once its MD5 is right. MONAI's `download_url` starts from nothing after every cut.

    Raises MachineError where the network, the disk or another process is in the way; DataError where what came, or what lies
    there, is not the set.
    """
    say(f"{known.name}: {known.size}, licence {known.licence}, from {known.url}")
    say(f"  cite {known.source}")
    file, place = out / known.file, known.place(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / f".{known.file}.lock", timeout=0):
            if known.is_archive and is_unpacked(place, known.md5):
                say(f"{place}: is there already, {known.num_scans} scans")
            else:
                _bring(known, file)
                if known.is_archive:
                    unpack(file, place, known.md5)
                    say(f"{file}: is no longer needed")
                say(f"{place}: {known.num_scans} scans, MD5 as it should be")
    except Timeout:
        raise MachineError(f"{file}: another process is fetching it; wait for it, or choose another folder") from None
    except OSError as error:
        raise MachineError(f"{error.filename or out}: {error.strerror or error}; choose a folder that can be written") from None
    say(known.prepare_command(out))
    return place


def forecast(known: KnownSet, out: Path, say: Callable[[str], None]) -> None:
    """Say what `download` would fetch and what would be left to do, without a connection and with nothing written.

    MachineError where the disk is too small or cannot be written; DataError where something else lies where the set would.
    """
    say(f"{known.name}: {known.size}, licence {known.licence}, from {known.url}")
    file, place = out / known.file, known.place(out)
    if known.is_archive and is_unpacked(place, known.md5):
        say(f"{place}: is there already, {known.num_scans} scans; nothing would be fetched")
        return
    refuse_unwritable(out, "--out")
    if file.exists():
        say(f"{file}: lies there with {as_size(_size(file))}; its MD5 would be checked, and nothing be fetched")
    else:
        needed = _needed(known, file)
        require_space(nearest_folder(out), needed)
        told = " and ".join(f"{as_size(size)} {what}" for what, size in needed.items() if size)
        say(f"{told}; {as_size(free_bytes(out))} are free")
    say(f"then: {known.prepare_command(out)}")


def _needed(known: KnownSet, file: Path) -> dict[str, int]:
    """Bytes on the disk, and what for."""
    left = max(0, known.num_bytes - _size(_part_of(file)))
    return {"to fetch": left, "to unpack": known.num_bytes if known.is_archive else 0}


def _part_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.part")


def _bring(known: KnownSet, file: Path) -> None:
    """The file, with the right MD5, from the network where it does not lie there yet."""
    part = _part_of(file)
    found = file if file.exists() else part
    if found == part:
        require_space(file.parent, _needed(known, file))
        _fetch(known, part, file)
    md5 = _md5(found)
    if md5 == known.md5:
        os.replace(found, file)
        return
    told = f"MD5 {md5} of {_size(found)} bytes, {known.md5} is needed"
    if found == file:
        raise DataError(f"{file}: is not the set, or not whole: {told}; delete it, and the same command fetches it")
    part.unlink()
    raise DataError(
        f"{known.url}: what came is not the set: {told}; it was deleted. Run the same command again; "
        "where that does not help, something on the way changes it, or the set is no longer the one that medcl3d knows"
    )


def _fetch(known: KnownSet, part: Path, file: Path) -> None:
    """Make the partial file whole, in as many tries as bring something. MachineError where one brings nothing."""
    furthest = _size(part)
    with _bar(known.file, known.num_bytes) as show:
        while True:
            whole = -1
            try:
                whole, reason = _go_on(known.url, part, show), "the connection was cut"
            except HTTPError as error:
                reason = f"answers {error.code} {error.reason}"
            except (URLError, HTTPException, OSError) as error:
                if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                    raise MachineError(f"{part}: the disk is full; free some space, and the same command goes on") from None
                reason = f"cannot be reached ({getattr(error, 'reason', None) or error or type(error).__name__})"
            if whole == _size(part):
                return
            if _size(part) <= furthest:
                have = f"{_size(part)} bytes are there. Run" if _size(part) else "run"
                raise MachineError(
                    f"{known.url}: {reason}; {have} the same command again, or fetch the file by other means, "
                    f"put it at {file.absolute()}, and the same command goes on"
                )
            furthest = _size(part)


def _go_on(url: str, part: Path, show: Moved) -> int:
    """Append to the partial file what comes. Returns how many bytes the whole has; where the server does not say, what came."""
    have = _size(part)
    headers = {"User-Agent": f"medcl3d/{medcl3d.__version__}"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        # The address is of the table of known sets, and none of a user's.
        answer = urlopen(Request(url, headers=headers), timeout=TIMEOUT_S)  # nosec B310
    except HTTPError as error:
        if error.code == ALL_THERE and have:
            return have
        raise
    with answer:
        if answer.status != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0  # the server knows no ranges: from the start
        length = answer.headers.get("Content-Length")
        whole = None if length is None else have + int(length)
        with part.open("ab" if have else "wb") as file:
            show(have)
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                have += len(chunk)
                show(have)
    return have if whole is None else whole


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _md5(path: Path) -> str:
    digest, have = hashlib.md5(usedforsecurity=False), 0  # what the sets publish: it tells damage, no forgery
    with _bar(f"checking {path.name}", _size(path)) as show, path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            have += len(chunk)
            show(have)
    return digest.hexdigest()


@contextmanager
def _bar(title: str, total: int) -> Iterator[Moved]:
    """A bar of bytes on a terminal; what it yields is told how many there are by now."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not sys.stderr.isatty(), console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total)
        yield lambda have: progress.update(task, completed=have)

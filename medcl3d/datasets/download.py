"""Download a public set: resumed after an interruption, verified before unpacking, skipped if it exists."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout
from rich.progress import DownloadColumn, TransferSpeedColumn

from medcl3d.core.errors import DataError, MachineError
from medcl3d.core.version import __version__
from medcl3d.datasets.public_sets import KnownSet
from medcl3d.datasets.unpack import is_unpacked, require_space, unpack
from medcl3d.io.disk_space import format_size, free_bytes, nearest_folder, require_writable
from medcl3d.io.progress import progress_bar

CHUNK = 1 << 20  # bytes
TIMEOUT_S = 60.0  # without a byte
ALL_THERE = 416  # HTTP: the requested range is after the end

Progressed = Callable[[int], None]


def download(known: KnownSet, out: Path, say: Callable[[str], None]) -> Path:
    """Download a set into a folder and unpack it there. Returns its path for `prepare`.

    A manually downloaded file is used if its MD5 matches. MONAI's `download_url` restarts from zero after an
    interruption.

    Raises MachineError for errors of the network or disk, or if another process downloads it; DataError if
    the file or an existing folder is not the set.
    """
    say(f"{known.name}: {known.size}, licence {known.licence}, from {known.url}")
    say(f"  cite {known.source}")
    file, place = out / known.file, known.place(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / f".{known.file}.lock", timeout=0):
            if known.is_archive and is_unpacked(place, known.md5):
                say(f"{place}: exists already, {known.num_scans} scans")
            else:
                _obtain(known, file)
                if known.is_archive:
                    unpack(file, place, known.md5)
                    say(f"{file}: is no longer needed")
                say(f"{place}: {known.num_scans} scans, MD5 verified")
    except Timeout:
        remedy = "wait for it, or choose another folder"
        raise MachineError(file, "another process is downloading it", remedy) from None
    except OSError as error:
        place, reason = error.filename or out, error.strerror or error
        raise MachineError(place, reason, "choose a writable folder") from None
    say(known.prepare_command(out))
    return place


def dry_run(known: KnownSet, out: Path, say: Callable[[str], None]) -> None:
    """Dry run: report the steps of `download`, without a connection and without writing anything.

    MachineError if the disk is too small or not writable; DataError if something else is at the path of the
    set.
    """
    say(f"{known.name}: {known.size}, licence {known.licence}, from {known.url}")
    file, place = out / known.file, known.place(out)
    if known.is_archive and is_unpacked(place, known.md5):
        say(f"{place}: exists already, {known.num_scans} scans; nothing would be downloaded")
        return
    require_writable(out, "--out")
    if file.exists():
        size = format_size(_size(file))
        say(f"{file}: exists with {size}; its MD5 would be verified, and nothing downloaded")
    else:
        needed = _needed(known, file)
        require_space(nearest_folder(out), needed)
        sizes = " and ".join(f"{format_size(size)} {what}" for what, size in needed.items() if size)
        say(f"{sizes}; {format_size(free_bytes(out))} are free")
    say(f"then: {known.prepare_command(out)}")


def _needed(known: KnownSet, file: Path) -> dict[str, int]:
    """Bytes of disk space by purpose."""
    left = max(0, known.num_bytes - _size(_part_of(file)))
    return {"to download": left, "to unpack": known.num_bytes if known.is_archive else 0}


def _part_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.part")


def _obtain(known: KnownSet, file: Path) -> None:
    """The file with the right MD5; downloaded unless it exists."""
    part = _part_of(file)
    found = file if file.exists() else part
    if found == part:
        require_space(file.parent, _needed(known, file))
        _fetch(known, part, file)
    md5 = _md5(found)
    if md5 == known.md5:
        os.replace(found, file)
        return
    mismatch = f"checksum mismatch: expected MD5 {known.md5}, got {md5} of {_size(found)} bytes"
    if found == file:
        raise DataError(file, mismatch, "delete the file and download it again")
    part.unlink()
    why = "the file was changed in transit, or the set is no longer the version that medcl3d lists"
    problem = f"{mismatch}; the file was deleted. Run the command again"
    raise DataError(known.url, problem, f"if that fails, {why}")


def _fetch(known: KnownSet, part: Path, file: Path) -> None:
    """Complete the partial file, with retries as long as each adds bytes. MachineError if one adds none."""
    most_bytes = _size(part)
    with _bar(known.file, known.num_bytes) as show:
        while True:
            total = -1
            try:
                total, reason = _append(known.url, part, show), "the connection was interrupted"
            except HTTPError as error:
                reason = f"answers {error.code} {error.reason}"
            except (URLError, HTTPException, OSError) as error:
                if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                    remedy = "free some space and run the command again to resume"
                    raise MachineError(part, "the disk is full", remedy) from None
                what = getattr(error, "reason", None) or error or type(error).__name__
                reason = f"cannot be reached ({what})"
            if total == _size(part):
                return
            if _size(part) <= most_bytes:
                have = f"{_size(part)} bytes were kept. Run" if _size(part) else "run"
                by_hand = f"download the file by other means, put it at {file.absolute()}"
                remedy = f"{have} the command again to resume, or {by_hand}, and run the command again"
                raise MachineError(known.url, reason, remedy)
            most_bytes = _size(part)


def _append(url: str, part: Path, show: Progressed) -> int:
    """Append the response to the partial file. Returns the total number of bytes, or those received."""
    have = _size(part)
    headers = {"User-Agent": f"medcl3d/{__version__}"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        # The URL is from the table of known sets, not from a user.
        answer = urlopen(Request(url, headers=headers), timeout=TIMEOUT_S)  # nosec B310
    except HTTPError as error:
        if error.code == ALL_THERE and have:
            return have
        raise
    with answer:
        if answer.status != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0  # no range support: from the start
        length = answer.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        with part.open("ab" if have else "wb") as file:
            show(have)
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                have += len(chunk)
                show(have)
    return have if total is None else total


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)  # published by the sets; detects damage, not forgery
    with _bar(f"checking {path.name}", _size(path)) as show, path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            show(file.tell())
    return digest.hexdigest()


@contextmanager
def _bar(title: str, total: int) -> Iterator[Progressed]:
    """A progress bar of bytes on a terminal; yields a function of the number of bytes so far."""
    with progress_bar(DownloadColumn(), TransferSpeedColumn()) as progress:
        task = progress.add_task(title, total=total)
        yield lambda have: progress.update(task, completed=have)

"""Unpack an untrusted tar file into a folder: completely or not at all, and nothing outside it."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path, PurePosixPath

from medcl3d.core.errors import DataError, MachineError
from medcl3d.io.atomic import write_json
from medcl3d.io.disk_space import format_size
from medcl3d.io.json_file import read_json

STAMP = ".unpacked.json"  # MD5 of the archive, and the size of each unpacked file
FREE_SPACE = "free some space or choose another folder"
REFUSED = "nothing was unpacked, do not use this file"


def unpack(archive: Path, place: Path, md5: str) -> None:
    """Unpack an archive as the folder `place`; a folder of that name inside the archive is not repeated.

    All members are validated before the first is written: only files and folders, below `place`. MONAI's
    `extractall` writes into the final folder, so that a partial archive looks complete.

    Raises DataError for other members and unreadable archives; MachineError if the disk is too small.
    """
    if not hasattr(tarfile, "data_filter"):
        raise MachineError(archive, "this Python unpacks without checks", "use 3.10.12, 3.11.4 or newer")
    partial = place.with_name(f".{place.name}.part")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of an interrupted run
        partial.mkdir(parents=True)
        with tarfile.open(archive, "r:") as tar:
            members = [_validated(archive, member, partial) for member in tar]
            require_space(place.parent, {"to unpack": sum(member.size for member in members)})
            tar.extractall(partial, members, filter="data")
        whole = partial / place.name if (partial / place.name).is_dir() else partial
        files = [path for path in sorted(whole.rglob("*")) if path.is_file()]
        sizes = {path.relative_to(whole).as_posix(): path.stat().st_size for path in files}
        write_json(whole / STAMP, {"md5": md5, "sizes": sizes})
        os.replace(whole, place)
    except (tarfile.TarError, EOFError) as error:
        problem = f"cannot be unpacked ({error}); download it again"
        raise DataError(archive, problem, "if that fails too, do not use it") from None
    except OSError as error:
        raise MachineError(place, f"cannot unpack: {error.strerror or error}", FREE_SPACE) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_unpacked(place: Path, md5: str) -> bool:
    """Whether the folder exists as unpacked. DataError if it is incomplete, or of another origin."""
    if not place.exists():
        return False
    remedy = "move it and run the command again, or prepare it as it is"
    if not (place / STAMP).is_file():
        raise DataError(place, "exists, but may be incomplete", remedy)
    stamp = read_json(place / STAMP, remedy)
    if stamp["md5"] != md5:
        raise DataError(place, f"was unpacked from another file, of MD5 {stamp['md5']}", remedy)
    found = {name: (place / name).stat().st_size for name in stamp["sizes"] if (place / name).is_file()}
    wrong = [name for name, size in stamp["sizes"].items() if found.get(name) != size]
    if wrong:
        count = f"{len(wrong)} of {len(stamp['sizes'])} files"
        raise DataError(place, f"{count} are missing or truncated, first {wrong[0]}", remedy)
    return True


def require_space(folder: Path, needed: dict[str, int]) -> None:
    """MachineError if a disk has too little free space; `needed` is purpose -> bytes."""
    free = shutil.disk_usage(folder).free
    if free < sum(needed.values()):
        parts = " and ".join(f"{format_size(size)} {what}" for what, size in needed.items() if size)
        raise MachineError(folder, f"{format_size(free)} are free, {parts} are needed", FREE_SPACE)


def _validated(archive: Path, member: tarfile.TarInfo, folder: Path) -> tarfile.TarInfo:
    """The member as it may be written. DataError for paths outside the folder, links, devices and pipes."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(archive, f"{member.name!r} would be outside the folder", REFUSED)
    if not (member.isfile() or member.isdir()):
        kind = "a link" if member.issym() or member.islnk() else "a device or a pipe"
        raise DataError(archive, f"{member.name!r} is {kind}", REFUSED)
    return tarfile.data_filter(member, str(folder))

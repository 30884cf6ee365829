"""A tar file from somewhere else becomes a folder: whole or not at all, and nothing outside of it."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path, PurePosixPath

from medcl3d.data.atomic import write_json
from medcl3d.data.json_file import read_json
from medcl3d.data.known_sets import as_size
from medcl3d.errors import DataError, MachineError

STAMP = ".unpacked.json"  # MD5 of the archive, and the size of every file that came out of it


def unpack(archive: Path, place: Path, md5: str) -> None:
    """Unpack an archive as the folder `place`; a folder of that name inside the archive is not repeated.

    Every member is checked before the first is written: files and folders only, below the place.
    MONAI's `extractall` writes into the place itself, so that half an archive looks like a whole one.

    Raises DataError for an archive that holds anything else or cannot be read; MachineError where the disk is too small.
    """
    if not hasattr(tarfile, "data_filter"):
        raise MachineError(f"{archive}: this Python unpacks without checks; take 3.10.12, 3.11.4 or newer")
    half = place.with_name(f".{place.name}.part")
    try:
        shutil.rmtree(half, ignore_errors=True)  # of an earlier time that was ended
        half.mkdir(parents=True)
        with tarfile.open(archive, "r:") as tar:
            members = [_checked(archive, member, half) for member in tar]
            require_space(place.parent, {"to unpack": sum(member.size for member in members)})
            tar.extractall(half, members, filter="data")
        whole = half / place.name if (half / place.name).is_dir() else half
        sizes = {path.relative_to(whole).as_posix(): path.stat().st_size for path in sorted(whole.rglob("*")) if path.is_file()}
        write_json(whole / STAMP, {"md5": md5, "sizes": sizes})
        os.replace(whole, place)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{archive}: cannot be unpacked ({error}); fetch it again, and where that does not help, do not use it") from None
    except OSError as error:
        raise MachineError(f"{place}: cannot unpack there: {error.strerror or error}; free some space or choose another folder") from None
    finally:
        shutil.rmtree(half, ignore_errors=True)


def is_unpacked(place: Path, md5: str) -> bool:
    """Whether the folder is there as it was unpacked. DataError where something else, or only a part of it, is there."""
    if not place.exists():
        return False
    remedy = "move it away and run the same command again, or prepare it as it is"
    if not (place / STAMP).is_file():
        raise DataError(f"{place}: is there, but nobody knows whether it is whole; {remedy}")
    stamp = read_json(place / STAMP, remedy)
    if stamp["md5"] != md5:
        raise DataError(f"{place}: was unpacked from another file, of MD5 {stamp['md5']}; {remedy}")
    wrong = [name for name, size in stamp["sizes"].items() if not (place / name).is_file() or (place / name).stat().st_size != size]
    if wrong:
        raise DataError(f"{place}: {len(wrong)} of {len(stamp['sizes'])} files are missing or cut, first {wrong[0]}; {remedy}")
    return True


def require_space(folder: Path, needed: dict[str, int]) -> None:
    """MachineError where a disk has less room than is needed; `needed` says for what, in bytes."""
    free = shutil.disk_usage(folder).free
    if free < sum(needed.values()):
        parts = " and ".join(f"{as_size(size)} {what}" for what, size in needed.items() if size)
        raise MachineError(f"{folder}: {as_size(free)} are free, {parts} are needed; free some space or choose another folder")


def _checked(archive: Path, member: tarfile.TarInfo, folder: Path) -> tarfile.TarInfo:
    """The member as it may be written. DataError for what leaves the folder, and for links, devices and pipes."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{archive}: {member.name!r} would leave the folder; nothing was unpacked, do not use this file")
    if not (member.isfile() or member.isdir()):
        kind = "a link" if member.issym() or member.islnk() else "a device or a pipe"
        raise DataError(f"{archive}: {member.name!r} is {kind}; nothing was unpacked, do not use this file")
    return tarfile.data_filter(member, str(folder))

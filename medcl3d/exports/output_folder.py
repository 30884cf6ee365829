"""The folder of an export: it appears whole, and replaces only an export of the same run and format."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medcl3d.core.errors import ConfigError, MachineError
from medcl3d.io.atomic import PARTIAL, write_json
from medcl3d.io.json_file import read_json

STAMP = "export.json"


@contextmanager
def export_folder(out: Path, identity: Mapping[str, Any], more: Mapping[str, Any]) -> Iterator[Path]:
    """An empty folder to write into. Its content is moved to `out` if the block succeeds.

    identity  what the export is of; with `more`, the content of export.json

    ConfigError if `out` has files and was not written by an export of the same identity. MachineError if it
    cannot be written.
    """
    refuse_other(out, identity)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(PARTIAL, f".{out.name}.", out.parent))
    except OSError as error:
        raise _unwritable(out, error) from error
    try:
        yield partial
        files = sorted(path.relative_to(partial) for path in partial.rglob("*") if path.is_file())
        write_json(partial / STAMP, {**identity, **more, "files": [file.as_posix() for file in files]})
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o777 & ~umask)
        if not out.exists():
            os.replace(partial, out)
        for file in [*files, Path(STAMP)] if partial.exists() else ():
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial / file, out / file)
    except OSError as error:
        raise _unwritable(out, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_other(out: Path, identity: Mapping[str, Any]) -> None:
    """ConfigError if a folder has files and was not written by an export of the same identity."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    stamp = read_json(out / STAMP, "") if (out / STAMP).is_file() else {}
    if not stamp or any(stamp.get(name) != value for name, value in identity.items()):
        problem = "has files that this export did not write"
        raise ConfigError(problem=problem, remedy="choose an empty folder", place=f"--out {out}")


def _unwritable(out: Path, error: OSError) -> MachineError:
    problem = f"cannot write: {error.strerror or error}"
    return MachineError(f"--out {out}", problem, "free some space or choose another folder")

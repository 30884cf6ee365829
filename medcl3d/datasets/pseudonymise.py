"""Pseudonymised ids: keyed hashes that only the holder of the key can assign to patients."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from medcl3d.core.columns import PATH_COLUMNS
from medcl3d.core.notes import without_names
from medcl3d.datasets.manifest import Manifest
from medcl3d.io.atomic import open_atomic

KEY = ".hash_key"
ENDINGS = (".nii.gz", ".nii", ".gz")  # needed by readers; no other piece of the name is kept


def id_hasher(raw: Path | None) -> Callable[[str], str]:
    """Text -> its hash under a key, since short ids could be found by trial without one; "" stays "".

    raw  folder of the key, drawn once per collection (None: drawn again and not kept)
    """
    key = secrets.token_hex(32).encode() if raw is None else _kept_key(raw)
    return lambda text: hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:12] if text else ""


def _kept_key(raw: Path) -> bytes:
    path = raw / KEY
    raw.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with open_atomic(path) as out:
            out.write(secrets.token_hex(32).encode())
        path.chmod(0o600)
    return path.read_bytes()


def pseudonymised(manifest: Manifest, raw: Path) -> Manifest:
    """The same scans under hashed ids: links in `raw`, with hashed names, to the source's files.

    Scans, patients and frames are hashed, sessions numbered, names removed from notes. All other columns are
    unchanged. Raises DataError for a path that the source may not follow.
    """
    hash_id = id_hasher(raw)
    table = manifest.table.copy()
    for name in ("scan", "patient", "frame"):
        table[name] = table[name].map(hash_id)
    table["session"] = _numbered(table)
    for name in PATH_COLUMNS:
        if name in table:
            end = "" if name == "path" else f".{name}"
            files = [manifest.locate(text) if text else None for text in table[name]]
            pairs = zip(table["scan"], files, strict=True)
            table[name] = [_link(raw, f"{scan}{end}", file) for scan, file in pairs]
    notes = tuple(without_names(note) for note in manifest.notes)
    faults = {hash_id(scan): "its source could not make a file of it" for scan in manifest.faults}
    return Manifest(table, raw, manifest.label_names, outside=True, notes=notes, faults=faults)


def _numbered(table: pd.DataFrame) -> list[str]:
    """Sessions of each patient as 1, 2, ..., sorted by days, else by name: names are often dates."""
    days = table.get("session_days", pd.Series(0.0, table.index))
    visits = table[["patient", "session"]].assign(days=pd.to_numeric(days, errors="coerce"))
    ordered = visits.sort_values(["days", "session"], kind="stable").drop_duplicates(["patient", "session"])
    ordered["number"] = (ordered.groupby("patient", sort=False).cumcount() + 1).astype(str)
    return visits.merge(ordered, on=["patient", "session"], how="left")["number"].tolist()


def _link(raw: Path, name: str, file: Path | None) -> str:
    """The name of a link to a file, replaced if its target differs; "" without a file."""
    if file is None:
        return ""
    target = os.path.abspath(file)
    link = raw / (name + next((ending for ending in ENDINGS if target.endswith(ending)), ""))
    if not link.is_symlink() or os.readlink(link) != target:
        new = link.with_name(f".{link.name}.part")
        new.unlink(missing_ok=True)
        new.symlink_to(target)
        new.replace(link)
    return link.name

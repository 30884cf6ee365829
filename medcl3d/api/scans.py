"""Prepare scans from Python, and open what was prepared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from medcl3d.preprocessing.options import prepare_options
from medcl3d.preprocessing.prepare import prepare as prepare_scans
from medcl3d.store.store import Store


def prepare(
    source: str,
    root: str | Path | None = None,
    *,
    out: str | Path,
    report: Callable[[str], None] = print,
    **options: Any,
) -> Store:
    """Validate scans, bring them to one form, and open the resulting store, as `medcl3d prepare` does.

        store = medcl3d.prepare("bids", "ds001", out="data/mine", spacing_mm=[2, 2, 2])

    source   name of a source; `medcl3d list sources` names them
    root     file or folder that the source reads; None for `simulated`, which makes its own scans
    out      folder for manifest.csv, report.csv, split.json and store/
    report   receives progress notes, one line each
    options  fields of the source (`medcl3d list sources NAME`) and of the preparation

    Call it again to resume: only scans that are missing or changed are prepared.
    ConfigError: an option is wrong. DataError: more scans were refused than `max_bad_fraction` allows.
    MachineError: `out` cannot be written.
    """
    given = prepare_options(source, options)
    place = None if root is None else Path(root).expanduser()
    folder = Path(out).expanduser()
    prepare_scans(source, place, folder, fields=given.fields, options=given.options, say=report)
    return Store.open(folder)


def open_store(root: str | Path) -> Store:
    """Open a folder that `prepare` wrote. DataError: it is absent, incomplete or damaged."""
    return Store.open(Path(root).expanduser())

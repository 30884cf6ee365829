"""Patients that pretrained weights have seen: none of them may be tested."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medcl3d.core.errors import ConfigError, DataError
from medcl3d.layouts.foreign import UNKNOWN
from medcl3d.store.content_hashes import scans_with_content
from medcl3d.store.store import Store

WITHHELD = "withheld"  # the patients of pretraining, in an export
SAW_UNKNOWN = "it is unknown which patients these weights were trained on; test patients may be among them"


def refuse_test_patients(path: Path, sidecar: Mapping[str, Any], test_patients: Collection[str]) -> None:
    if sidecar.get("pretraining_patients") == WITHHELD:
        if test_patients:
            problem = (
                "an export, which does not list the patients of pretraining; test patients may be among them"
            )
            raise ConfigError(problem=problem, remedy="use the run folder", place=path.with_suffix(".json"))
        return
    if not isinstance(sidecar.get("pretraining_patients"), list):
        problem, remedy = "lacks pretraining_patients, which may include test patients", "pretrain again"
        raise ConfigError(problem=problem, remedy=remedy, place=path.with_suffix(".json"))
    refuse_patients(path, sidecar["pretraining_patients"], test_patients)


def refuse_patients(path: Path, used: Sequence[str] | str, test_patients: Collection[str]) -> None:
    """DataError if pretraining used test patients; patients that are unknown are not refused."""
    seen = [] if used == UNKNOWN else sorted(set(used).intersection(test_patients))
    if seen:
        raise DataError(
            path,
            f"pretraining used {len(seen)} of the test patients: {first_few(seen)}",
            "pretrain on the training patients of this split (patients of another collection need "
            "different ids)",
        )


def unknown_origin(path: Path, sidecar: Mapping[str, Any]) -> list[str]:
    """A note if the patients that the weights have seen are unknown."""
    if sidecar["pretraining_patients"] != UNKNOWN:
        return []
    return [f"{path}: {SAW_UNKNOWN}"]


def refuse_test_scans(
    path: Path, sidecar: Mapping[str, Any], test_patients: Collection[str], store: Store | None
) -> list[str]:
    """DataError if a test scan has the content of a scan used in pretraining.

    Returns a note if this is unknown.
    """
    if store is None:
        return []
    if "pretraining_content" not in sidecar:
        return [
            f"{path.with_suffix('.json')}: lists the patients of pretraining but not the content of their "
            "scans, so a test scan used under another patient id would not be detected; pretrain again if "
            "that is possible"
        ]
    owner = store.collection.table["patient"]
    rows = np.flatnonzero(owner.isin(test_patients))
    of = {str(store.scans[row]["scan"]): str(owner.iloc[row]) for row in rows}
    seen = scans_with_content((store.scans[row] for row in rows), sidecar["pretraining_content"])
    if seen:
        named = [f"{scan} of {of[scan]} ({match})" for scan, match in seen.items()]
        raise DataError(
            path,
            f"pretraining used {len(seen)} of the {len(rows)} test scans of {store.root} under other "
            f"patient ids: {first_few(named)}",
            "pretrain without them, or move their patients to the training side here",
        )
    return []


def first_few(names: Sequence[str], most: int = 10) -> str:
    """The first names, and an ellipsis if there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")

"""What a run read, as hashes, part by part: whoever goes on with it, or compares it, knows what of it is no longer the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from medcl3d.data.columns import ID_COLUMNS, PATH_COLUMNS
from medcl3d.data.splits import read_split

if TYPE_CHECKING:
    from medcl3d.data.store import Store

# Read by strategies and tasks without being named in a configuration: that they come or go is a change.
ALWAYS_READ = (*ID_COLUMNS, "session_days")


def fingerprints(store: Store) -> dict[str, Any]:
    """What a run that reads a store depends on, but for its configuration.

    data      `Store.fingerprint`: ids, voxels, labels, geometry
    body      where the body lies in each scan, and in the atlas that the manifest names
    manifest  column -> hash of its values, in the order of the scans
    split     who trains, tests and validates, and the folds

    Columns of paths are left out: a file may move, and what it holds is in `data` and `body`. So is `split`, of which split.json is
    what counts. They are hashed apart, so that a change can be named, and so that a new column of metadata leaves alone what
    could not have read it. It all stays in the run folder, and out of what is shared with weights: of a short column, as the
    sex of ten patients, all values can be tried.
    """
    collection, table = store.collection, store.collection.table
    body = hashlib.sha256(np.ascontiguousarray(collection.body_boxes, dtype="<i8").data)
    body.update(np.ascontiguousarray(collection.body.from_world, dtype="<f8").data)
    names = [*ALWAYS_READ, *(name for name in table if name not in (*ALWAYS_READ, *PATH_COLUMNS, "split"))]
    missing = pd.Series(None, index=table.index, dtype=object)
    split = read_split(store.root / "split.json", table["patient"])
    return {
        "data": store.fingerprint(),
        "body": body.hexdigest(),
        "manifest": {name: _hash(_values(table.get(name, missing), is_id=name in ID_COLUMNS)) for name in names},
        "split": _hash([split.train, split.test, split.validation, split.folds]),
    }


def parts_read(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The hashes in a provenance.json: each part in words -> its hash. Runs of before parts were hashed apart have the first alone."""
    found = {"voxels, labels or geometry": provenance.get("data")}
    for key, words in (("body", "where the body lies"), ("split", "split.json")):
        if key in provenance:
            found[words] = provenance[key]
    return found | {f"the column {name} of manifest.csv": digest for name, digest in provenance.get("manifest", {}).items()}


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In what two provenances differ that have it both, in words."""
    then = parts_read(before)
    return [words for words, digest in parts_read(now).items() if words in then and then[words] != digest]


def _values(column: pd.Series, is_id: bool) -> list[Any]:
    """Numbers as numbers, so that 72 and 72.0 are one age; ids and the rest as they are written; None where missing."""
    numbers = column if is_id else pd.to_numeric(column, errors="coerce")
    told = column if is_id or (numbers.isna() & column.notna()).any() else numbers.astype(np.float64)
    return told.astype(object).where(told.notna(), None).tolist()


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()

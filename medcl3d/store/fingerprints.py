"""Hashes of a run's input data, one per part, so that resuming and comparing runs can name what changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from medcl3d.core.columns import ID_COLUMNS, PATH_COLUMNS
from medcl3d.store.splits import read_split

if TYPE_CHECKING:
    from medcl3d.store.store import Store

# Read by strategies and tasks without being named in a configuration: adding or removing one is a change.
ALWAYS_READ = (*ID_COLUMNS, "session_days")


def fingerprints(store: Store) -> dict[str, Any]:
    """Hashes of the inputs of a run that reads a store, besides its configuration.

    data      `Store.fingerprint`: ids, voxels, labels, geometry
    body      the body's position in each scan, and in the atlas that the manifest names
    manifest  column -> hash of its values, in the order of the scans
    split     the training, test and validation patients, and the folds

    Path columns are excluded: files may move, and their content is in `data` and `body`. So is the column
    `split`, since split.json decides. Each column has its own hash, so that a change can be named, and so
    that a new metadata column does not affect runs that could not have read it. The hashes stay in the run
    folder and are never shared with weights: the values of a short column, such as the sex of ten patients,
    can be found by trying all of them.
    """
    collection, table = store.collection, store.collection.table
    body = hashlib.sha256(np.ascontiguousarray(collection.body_boxes, dtype="<i8").data)
    body.update(np.ascontiguousarray(collection.body.from_world, dtype="<f8").data)
    names = [*ALWAYS_READ, *(name for name in table if name not in (*ALWAYS_READ, *PATH_COLUMNS, "split"))]
    missing = pd.Series(None, index=table.index, dtype=object)
    split = read_split(store.root / "split.json", table["patient"])
    columns = {name: _values(table.get(name, missing), is_id=name in ID_COLUMNS) for name in names}
    return {
        "data": store.fingerprint(),
        "body": body.hexdigest(),
        "manifest": {name: _hash(values) for name, values in columns.items()},
        "split": _hash([split.train, split.test, split.validation, split.folds]),
    }


def hashed_parts(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The hashes in a provenance.json: description of the part -> its hash.

    Older runs have only the first.
    """
    found = {"voxels, labels or geometry": provenance.get("data")}
    for key, name in (("body", "the position of the body"), ("split", "split.json")):
        if key in provenance:
            found[name] = provenance[key]
    columns = provenance.get("manifest", {})
    return found | {f"the column {name} of manifest.csv": digest for name, digest in columns.items()}


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Descriptions of the parts that differ, among those that both provenances have."""
    then = hashed_parts(before)
    return [name for name, digest in hashed_parts(now).items() if name in then and then[name] != digest]


def _values(column: pd.Series, is_id: bool) -> list[Any]:
    """Numbers as numbers, so that 72 and 72.0 are the same age; ids and others as text; None if missing."""
    numbers = column if is_id else pd.to_numeric(column, errors="coerce")
    values = column if is_id or (numbers.isna() & column.notna()).any() else numbers.astype(np.float64)
    return values.astype(object).where(values.notna(), None).tolist()


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()

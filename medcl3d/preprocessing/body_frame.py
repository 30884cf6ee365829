"""Body coordinates by registration: an affine of each scan into one reference scan."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medcl3d.core.body_coordinates import middle_of_body
from medcl3d.core.errors import DataError
from medcl3d.io.atomic import write_json
from medcl3d.io.progress import titled_bar
from medcl3d.preprocessing.workers import in_parallel
from medcl3d.store.quantise import unpack
from medcl3d.store.stored_scan import (
    REGISTERED,
    open_stored,
    read_description,
    read_registered,
    scaling_of,
)

NUM_NAMED = 5
Description = Mapping[str, Any]


def partial_atlas(table: pd.DataFrame) -> list[str]:
    """A warning if only some scans have an atlas: body coordinates of two origins are not comparable."""
    if "atlas" not in table:
        return []
    missing = table["scan"][table["atlas"] == ""]
    if len(missing) in (0, len(table)):
        return []
    problem = f"{len(missing)} of {len(table)} scans have no atlas (for example {missing.iloc[0]})"
    effect = (
        "their body coordinates have another origin, so that strategies of body positions match wrong places"
    )
    return [f"warning: {problem}; {effect}; give an affine for each frame, or for none"]


def register_bodies(
    out: Path, table: pd.DataFrame, train: Sequence[str], workers: int, say: Callable[[str], None]
) -> None:
    """Register all scans of a store to one of them, and write registered.json.

    table  the scans, rows of the manifest; train: the training patients, one of whom gives the reference

    The reference is the training scan of the most frequent modality whose body has the most usual extent. Of
    the scans of one frame, the one of the most frequent modality is registered, and the others have its
    affine. Frames with an atlas affine in the manifest keep that. A scan that cannot be registered is named,
    and keeps coordinates from the middle of its body. Affines of unchanged scans are kept.
    """
    if "atlas" in table:
        table = table[table["atlas"] == ""]
    if not len(table):
        (out / REGISTERED).unlink(missing_ok=True)  # of an earlier preparation: it precedes an atlas
        return
    described = {scan: read_description(out, scan) for scan in table["scan"]}
    frequency = table["modality"].value_counts()
    order = table.assign(rank=-table["modality"].map(frequency)).sort_values(["rank", "modality", "scan"])
    of_train = order[order["patient"].isin(train)]
    reference = _reference(of_train if len(of_train) else order, described)
    before = read_registered(out)
    chosen = order.drop_duplicates("frame")
    one_of = dict(zip(chosen["frame"], chosen["scan"], strict=True))
    found = {}
    for scan in one_of.values():
        entry, hashes = before.get(scan, {}), _hashes(described[scan], described[reference])
        if entry.get("registered") == scan and hashes.items() <= entry.items():
            found[scan] = entry
    left = [scan for scan in one_of.values() if scan not in found]
    run = partial(_registered, out=out, reference=described[reference])
    with titled_bar("registering bodies", len(left)) as advance:
        todo = [described[scan] for scan in left]
        for entry in in_parallel(run, todo, workers, lambda about: str(about["scan"])):
            found[entry["scan"]] = entry
            advance("registering bodies")
    for scan, frame in zip(order["scan"], order["frame"], strict=True):
        if scan != one_of[frame]:
            found[scan] = {**found[one_of[frame]], "scan": scan, "registered": one_of[frame]}
    write_json(out / REGISTERED, {"reference": reference, "scans": found})
    failed = [entry for scan, entry in found.items() if entry["failed"] and scan == entry["registered"]]
    for entry in failed[:NUM_NAMED]:
        say(f"{entry['scan']}: {entry['failed']}; its body coordinates start at the middle of its body")
    gains = [entry["similarity"] - entry["before"] for entry in found.values() if entry["similarity"]]
    gain = f", mutual information raised by {np.median(gains):.2f} nats (median)" if gains else ""
    say(f"body coordinates: {len(found)} scans registered to {reference}{gain}; {len(failed)} failed")


def _reference(rows: pd.DataFrame, described: Mapping[str, Description]) -> str:
    """Of the scans of the first modality, the one whose body is nearest to the median extent, in mm."""
    rows = rows[rows["modality"] == rows["modality"].iloc[0]]
    boxes = np.array([described[scan]["body"]["box"] for scan in rows["scan"]])
    affines = np.array([described[scan]["affine"] for scan in rows["scan"]])
    extents = (boxes[:, 1] - boxes[:, 0]) * np.linalg.norm(affines[:, :3, :3], axis=1)
    distance = np.abs(np.log(extents / np.median(extents, axis=0))).sum(1)
    return str(rows["scan"].iloc[int(distance.argmin())])


def _middle(about: Description) -> np.ndarray:
    return middle_of_body(np.array(about["affine"]), np.array(about["body"]["box"]))


def _hashes(about: Description, reference: Description) -> dict[str, Any]:
    """The content that an entry of registered.json depends on: voxels, and their position in the world."""
    geometry = [[one["affine"], one["body"]["box"]] for one in (about, reference)]
    return {
        "stored_sha256": about["stored_sha256"],
        "reference_sha256": reference["stored_sha256"],
        "geometry_sha256": hashlib.sha256(json.dumps(geometry).encode()).hexdigest(),
    }


def _registered(about: Description, *, out: Path, reference: Description) -> dict[str, Any]:
    """The entry of one scan: its world mm -> body mm, how similar it became, or why it failed."""
    middle, to_body = _middle(about), _middle(reference)
    entry = {
        "scan": about["scan"],
        "registered": about["scan"],
        "from_world": middle.tolist(),
        "similarity": None,
        "before": None,
        "failed": "",
        **_hashes(about, reference),
    }
    if about["scan"] == reference["scan"]:
        return entry
    from medcl3d.preprocessing.register import register

    try:
        result = register(*_volume(out, about), *_volume(out, reference), np.linalg.inv(to_body) @ middle)
    except DataError as error:
        return {**entry, "failed": str(error)}
    found = {"similarity": result.similarity, "before": result.before}
    return {**entry, **found, "from_world": (to_body @ result.matrix).tolist()}


def _volume(out: Path, about: Description) -> tuple[np.ndarray, np.ndarray]:
    """The first channel of a stored scan, ``Float32[D, H, W]``, and its affine."""
    stored = open_stored(out, about, is_label=False)[...][0]
    return unpack(stored, scaling_of(about)), np.array(about["affine"])

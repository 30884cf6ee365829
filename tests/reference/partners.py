"""Partners of scans by comparing each with all others: quadratic, and therefore only a reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from medcl3d.core.collection import Collection


def same_patient_loops(strategy: Any, collection: Collection, scan: int) -> list[int]:
    """Other scans of the patient, of any session, known to be of the same one only, or known to be of
    another.
    """
    patient, session = collection.columns["patient"], collection.table["session"].tolist()
    others = [other for other in range(len(collection)) if other != scan and patient[other] == patient[scan]]
    if strategy.same_session == "any":
        return others
    known = [other for other in others if isinstance(session[other], str) and isinstance(session[scan], str)]
    return [
        other for other in known if (session[other] == session[scan]) == (strategy.same_session == "only")
    ]


def longitudinal_loops(strategy: Any, collection: Collection, scan: int) -> list[int]:
    """Other scans of the patient in the modality, of another session or day, within the largest gap in
    days.
    """
    columns, session, day = (
        collection.columns,
        collection.table["session"].tolist(),
        collection.table["session_days"].tolist(),
    )
    most = strategy.max_gap_days or np.inf
    return [
        other
        for other in range(len(collection))
        if other != scan
        and all(columns[name][other] == columns[name][scan] for name in ("patient", "modality"))
        and (
            (
                isinstance(session[other], str)
                and isinstance(session[scan], str)
                and session[other] != session[scan]
            )
            or abs(day[other] - day[scan]) > 0
        )
        and abs(columns["session_days"][other] - columns["session_days"][scan]) <= most
    ]


def cross_modality_loops(strategy: Any, collection: Collection, scan: int) -> list[int]:
    """Other modalities of the session, both selected, in one frame unless matched by the body."""
    columns, session, modality = (
        collection.columns,
        collection.table["session"].tolist(),
        collection.table["modality"].tolist(),
    )
    selected = strategy.modalities or tuple(modality)
    return [
        other
        for other in range(len(collection))
        if columns["patient"][other] == columns["patient"][scan]
        and session[other] == session[scan]
        and columns["modality"][other] != columns["modality"][scan]
        and modality[other] in selected
        and modality[scan] in selected
        and (strategy.across_frames == "body" or collection.share_frame(scan, other))
    ]


def tabular_loops(collection: Collection, scan: int, alike: np.ndarray, k: int) -> list[int]:
    """Scans of the modality by decreasing similarity, of the first k patients; `alike` is ``Float[n]``."""
    patient, modality = collection.columns["patient"], collection.columns["modality"]
    others = [
        o
        for o in range(len(collection))
        if patient[o] != patient[scan] and modality[o] == modality[scan] and alike[o] > 0
    ]
    others.sort(key=lambda other: -alike[other])
    nearest = list(dict.fromkeys(patient[other] for other in others))[:k]
    return [other for other in others if patient[other] in nearest]


def arranged_loops(
    order: np.ndarray,
    group_size: int,
    affinity_of: Callable[[int], np.ndarray],
    patients: np.ndarray,
    rng: np.random.Generator,
) -> list[int]:
    """Batch groups: each place is filled from a new list of all unused scans."""
    waiting, groups = order.tolist(), list[int]()
    while waiting:
        group = [waiting[0]]
        affinity = np.array([a if scan in order else 0.0 for scan, a in enumerate(affinity_of(group[0]))])
        while len(group) < group_size:
            affinity[np.isin(patients, patients[group])] = 0
            left = [anchor for anchor in waiting if anchor not in group]
            fresh = np.array([a if scan in left else 0.0 for scan, a in enumerate(affinity)])
            weights = fresh if fresh.any() else affinity
            if weights.any():
                group.append(int(rng.choice(len(weights), p=weights / weights.sum())))
            else:
                group.append(left[0] if left else group[0])
        waiting = [anchor for anchor in waiting if anchor not in group]
        groups += group
    return groups

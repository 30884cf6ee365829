"""The scans that a page shows: some of training patients, some of held-out patients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from medcl3d.store.splits import SIDES, Split
from medcl3d.store.store import Store

MOST_OF_A_PATIENT = 2  # scans of different modalities, to compare them


def side_of(split: Split, patient: str) -> str:
    """train, test or validation; "" if the patient has no side."""
    return next((side for side in SIDES if patient in getattr(split, side)), "")


def choose_scans(
    store: Store,
    split: Split,
    num: int,
    *,
    first: Iterable[int] = (),
    modalities: Sequence[str] | None = None,
    training: bool = True,
    held_out: Sequence[str] = ("test", "validation"),
) -> list[int]:
    """`num` scans of the store: a half of training patients, then of held-out patients.

    first       training scans to prefer, as those of the first samples of a run
    modalities  only scans of these (default: all)
    training    False: held-out patients only, if there are any
    held_out    the sides of held-out patients to show

    If one half has fewer scans, the other fills up. Each patient has at most one scan per modality, and two
    in all, unless `first` names more.
    """
    of_side = _scans_by_side(store, split, modalities)
    train = list(dict.fromkeys([*first, *of_side["train"], *of_side[""]]))
    others = [scan for side in held_out for scan in of_side[side]]
    if not training:
        return (others or train)[:num]
    num_train = max(num - len(others), num - num // 2)
    chosen = train[:num_train]
    return [*chosen, *others[: num - len(chosen)]]


def _scans_by_side(store: Store, split: Split, modalities: Sequence[str] | None) -> dict[str, list[int]]:
    """Scans by side of their patient, in the order of the manifest."""
    table = store.collection.table
    modality = table["modality"].astype(str).to_numpy() if "modality" in table else np.full(len(table), "")
    seen: dict[str, set[str]] = {}
    found: dict[str, list[int]] = {side: [] for side in (*SIDES, "")}
    for scan, patient in enumerate(table["patient"].astype(str)):
        of_patient = seen.setdefault(patient, set())
        known = modality[scan] in of_patient or len(of_patient) == MOST_OF_A_PATIENT
        if known or (modalities is not None and modality[scan] not in modalities):
            continue
        of_patient.add(modality[scan])
        found[side_of(split, patient)].append(scan)
    return found

"""Notes on classes with few labelled training patients, whose results depend on these few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medcl3d.downstream.task import HasClasses

if TYPE_CHECKING:
    from medcl3d.downstream.task import Task
    from medcl3d.store.store import Store

FEW = 5
"""A class with fewer labelled patients is reported, unless all patients have it."""


def few_training_cases(task: Task, store: Store, scans: Sequence[int]) -> dict[str, int]:
    """Class -> number of patients of these training scans with it, for classes with few such patients.

    Few: at most one, or fewer than five if there are patients without it. Empty for tasks without classes.
    """
    if not isinstance(task, HasClasses):
        return {}
    known = task.class_names(store)
    names = known.values() if isinstance(known, Mapping) else known
    patients = store.collection.table["patient"].astype(str).to_numpy()
    having: dict[str, set[str]] = {name: set() for name in names}
    for scan in scans:
        for name in task.classes_in(store, int(scan)):
            having[name].add(patients[scan])
    total = len(set(patients[list(scans)]))
    return {
        name: len(found) for name, found in having.items() if len(found) <= 1 or len(found) < min(FEW, total)
    }


def few_case_notes(few: Mapping[str, int], total: int) -> list[str]:
    """One sentence per class."""

    def one(name: str, count: int) -> str:
        if count == 0:
            return f"class {name}: none of {total} labelled training patients has it, so it was not trained"
        have = "has" if count == 1 else "have"
        known = f"{count} of {total} labelled training patients {have} it"
        return f"class {name}: {known}; its results depend on {count}"

    return [one(name, count) for name, count in few.items()]


def few_cases_over_runs(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """One sentence per class over several results: numbers of patients, and number of results with few."""
    counted: dict[str, list[int]] = {}
    for one in results:
        for name, count in (one.get("few_training_cases") or {}).items():
            counted.setdefault(name, []).append(int(count))
    return [
        f"Class {name}: few labelled training patients have it ({_range(counts)}, in {len(counts)} of "
        f"{len(results)} measurements); its "
        "results depend on them."
        for name, counts in counted.items()
    ]


def _range(counts: Sequence[int]) -> str:
    return str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"

"""Classes that few labelled training patients have: their figures rest on those few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medcl3d.data.store import Store
    from medcl3d.downstream import Task

FEW = 5
"""A class that fewer labelled patients have, while others lack it, is named."""


def few_training_cases(task: Task, store: Store, scans: Sequence[int]) -> dict[str, int]:
    """Class -> how many of the patients of these training scans have it, of the classes that few have.

    Few: one or none, or fewer than five if there are patients without it. Empty for tasks without classes.
    """
    names, present = getattr(task, "class_names", None), getattr(task, "classes_in", None)
    if names is None or present is None:
        return {}
    known = names(store)
    patients = store.collection.table["patient"].astype(str).to_numpy()
    having: dict[str, set[str]] = {name: set() for name in (known.values() if isinstance(known, Mapping) else known)}
    for scan in scans:
        for name in present(store, int(scan)):
            having[name].add(patients[scan])
    total = len(set(patients[list(scans)]))
    return {name: len(found) for name, found in having.items() if len(found) <= 1 or len(found) < min(FEW, total)}


def few_words(few: Mapping[str, int], total: int) -> list[str]:
    """One sentence per class."""

    def one(name: str, count: int) -> str:
        if count == 0:
            return f"class {name}: none of {total} labelled training patients has it, so that it was not learnt"
        have = "has" if count == 1 else "have"
        return f"class {name}: {count} of {total} labelled training patients {have} it; its results rest on {count}"

    return [one(name, count) for name, count in few.items()]


def over_runs(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """One sentence per class over the results of several measurements: the fewest patients, and in how many measurements."""
    fewest: dict[str, list[int]] = {}
    for one in results:
        for name, count in (one.get("few_training_cases") or {}).items():
            fewest.setdefault(name, []).append(int(count))
    return [
        f"Class {name}: few labelled training patients have it ({_range(counts)}, in {len(counts)} of {len(results)} measurements); its "
        "results rest on them."
        for name, counts in fewest.items()
    ]


def _range(counts: Sequence[int]) -> str:
    return str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"

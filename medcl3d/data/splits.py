"""Which patients train and which test: always by patient, written once, read by everything else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medcl3d.data.atomic import write_json
from medcl3d.errors import ConfigError, DataError

SCHEMA = 1


@dataclass(frozen=True)
class Split:
    """Patients of each side, sorted."""

    train: tuple[str, ...]
    test: tuple[str, ...]


def make_split(table: pd.DataFrame, *, test_fraction: float, seed: int) -> Split:
    """Draw the test patients, the same fraction among those with a label as among those without.

    table: a manifest; where its `split` column says something, that is taken as it is. Raises
    DataError where a patient is on both sides, or only some patients have a side.
    """
    given = table[table["split"] != ""]
    if len(given):
        bare = sorted(set(table["patient"]) - set(given["patient"]))
        if bare:
            raise DataError(f"{len(bare)} patients have no split in the manifest: {', '.join(bare[:10])}; give all patients one, or none")
        split = Split(*(tuple(sorted(set(given["patient"][given["split"] == side]))) for side in ("train", "test")))
        _refuse_both("the manifest", split)
        return split
    labelled = set(table["patient"][table["label"] != ""])
    patients = sorted(set(table["patient"]))
    rng = np.random.default_rng(seed)
    test: set[str] = set()
    for group in ([p for p in patients if p in labelled], [p for p in patients if p not in labelled]):
        num_test = round(test_fraction * len(group))
        if test_fraction > 0 and len(group) > 1:
            num_test = min(max(num_test, 1), len(group) - 1)
        test.update(group[i] for i in rng.permutation(len(group))[:num_test])
    return Split(tuple(p for p in patients if p not in test), tuple(sorted(test)))


def write_split(path: Path, split: Split, seed: int) -> None:
    """Write split.json, atomically."""
    write_json(path, {"schema": SCHEMA, "seed": seed, "train": list(split.train), "test": list(split.test)})


def read_split(path: Path, patients: Iterable[str]) -> Split:
    """Read split.json and hold it against the patients of a store.

    Raises DataError: a patient on both sides, patients that the store lacks, or that have no side.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        sides = [content[side] for side in ("train", "test")]
        if not all(isinstance(p, str) for side in sides for p in side) or not all(isinstance(side, list) for side in sides):
            raise ValueError("train and test must be lists of patient ids in quotes")
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; `medcl3d prepare` writes it") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f'{path}: not a split ({error}); needed is {{"schema": 1, "train": ["id"], "test": ["id"]}}') from None
    if content.get("schema") != SCHEMA:
        raise DataError(f"{path}: schema is {content.get('schema')!r}, this version reads {SCHEMA}")
    split = Split(*(tuple(sorted(set(side))) for side in sides))
    _refuse_both(str(path), split)
    known, placed = set(patients), {*split.train, *split.test}
    for wrong, what in ((placed - known, "are not in the store"), (known - placed, "of the store are on no side")):
        if wrong:
            ids = sorted(wrong)
            raise DataError(f"{path}: {len(ids)} patients {what}: {', '.join(ids[:10])}; correct the file, or prepare again")
    return split


def _refuse_both(where: str, split: Split) -> None:
    both = sorted(set(split.train) & set(split.test))
    if both:
        raise DataError(f"{where}: {len(both)} patients are in train and in test: {', '.join(both[:10])}; leave each on one side")


def draw_labelled(
    split: Split, patients_with_label: Sequence[str], num: int, seed: int, strata: Mapping[str, int] | None = None
) -> tuple[str, ...]:
    """The training patients whose labels may be used: `num` of them, sorted.

    strata  patient -> class; the drawn are then shared out over the classes in proportion, as evenly as can be

    A smaller number with one seed is always a part of a larger one, so that a curve over `num` compares like with like.
    Raises ConfigError where there are fewer.
    """
    able = sorted(set(split.train) & set(patients_with_label))
    if not 0 < num <= len(able):
        raise ConfigError(f"num_labelled = {num}: the training side has {len(able)} patients with a label; choose 1 to {len(able)}")
    order = [able[i] for i in np.random.default_rng(seed).permutation(len(able))]
    if strata is not None:
        sizes, seen = Counter(strata[p] for p in able), Counter[int]()
        place: dict[str, float] = {}
        for patient in order:
            place[patient] = (seen[strata[patient]] + 0.5) / sizes[strata[patient]]
            seen[strata[patient]] += 1
        order.sort(key=lambda patient: place[patient])
    return tuple(sorted(order[:num]))

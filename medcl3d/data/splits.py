"""Which patients train and which test: always by patient, written once, read by everything else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from medcl3d.data.atomic import write_json
from medcl3d.errors import ConfigError, DataError

SCHEMA = 1
SIDES = ("train", "test", "validation")
Measured = Literal["test", "validation"]


@dataclass(frozen=True)
class Split:
    """Patients of each side, sorted.

    validation  those that choices are made on, so that the test patients are asked once
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    validation: tuple[str, ...] = ()

    @property
    def held_out(self) -> tuple[str, ...]:
        """The patients that nothing may be trained on."""
        return tuple(sorted({*self.test, *self.validation}))

    def measured_on(self, side: Measured) -> Split:
        """The same split with one side in the place of those that are tested. ConfigError where nobody is on it."""
        if side == "test":
            return self
        if not self.validation:
            raise ConfigError(
                "measured_on: validation: the split has no validation patients; prepare the scans with validation_fraction=0.2, "
                "or name them in the manifest's column split"
            )
        return replace(self, test=self.validation, validation=self.test)


def make_split(table: pd.DataFrame, *, test_fraction: float, seed: int, validation_fraction: float = 0.0) -> Split:
    """Draw the test and validation patients, the same fractions among those with a label as among those without.

    table: a manifest; where its `split` column says something, that is taken as it is. Whether there are validation patients
    does not change who tests. Raises DataError where a patient is on two sides, or only some patients have a side.
    """
    given = table[table["split"] != ""]
    if len(given):
        bare = sorted(set(table["patient"]) - set(given["patient"]))
        if bare:
            raise DataError(f"{len(bare)} patients have no split in the manifest: {', '.join(bare[:10])}; give all patients one, or none")
        split = Split(*(tuple(sorted(set(given["patient"][given["split"] == side]))) for side in SIDES))
        _refuse_both("the manifest", split)
        return split
    labelled = set(table["patient"][table["label"] != ""])
    patients = sorted(set(table["patient"]))
    rng = np.random.default_rng(seed)
    test: set[str] = set()
    validation: set[str] = set()
    for group in ([p for p in patients if p in labelled], [p for p in patients if p not in labelled]):
        num_test = round(test_fraction * len(group))
        if test_fraction > 0 and len(group) > 1:
            num_test = min(max(num_test, 1), len(group) - 1)
        num_validation = min(round(validation_fraction * len(group)), len(group) - num_test)
        order = [group[i] for i in rng.permutation(len(group))]
        test.update(order[:num_test])
        validation.update(order[num_test : num_test + num_validation])
    held_out = test | validation
    return Split(tuple(p for p in patients if p not in held_out), tuple(sorted(test)), tuple(sorted(validation)))


def write_split(path: Path, split: Split, seed: int) -> None:
    """Write split.json, atomically."""
    sides = {side: list(getattr(split, side)) for side in SIDES}
    write_json(path, {"schema": SCHEMA, "seed": seed, **(sides if split.validation else {s: sides[s] for s in ("train", "test")})})


def read_split(path: Path, patients: Iterable[str]) -> Split:
    """Read split.json and hold it against the patients of a store.

    Raises DataError: a patient on both sides, patients that the store lacks, or that have no side.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        sides = [content["train"], content["test"], content.get("validation", [])]
        if not all(isinstance(p, str) for side in sides for p in side) or not all(isinstance(side, list) for side in sides):
            raise ValueError("train, test and validation must be lists of patient ids in quotes")
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; `medcl3d prepare` writes it") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f'{path}: not a split ({error}); needed is {{"schema": 1, "train": ["id"], "test": ["id"]}}') from None
    if content.get("schema") != SCHEMA:
        raise DataError(f"{path}: schema is {content.get('schema')!r}, this version reads {SCHEMA}")
    split = Split(*(tuple(sorted(set(side))) for side in sides))
    _refuse_both(str(path), split)
    known, placed = set(patients), {*split.train, *split.held_out}
    for wrong, what in ((placed - known, "are not in the store"), (known - placed, "of the store are on no side")):
        if wrong:
            ids = sorted(wrong)
            raise DataError(f"{path}: {len(ids)} patients {what}: {', '.join(ids[:10])}; correct the file, or prepare again")
    return split


def _refuse_both(where: str, split: Split) -> None:
    for first, second in combinations(SIDES, 2):
        both = sorted(set(getattr(split, first)) & set(getattr(split, second)))
        if both:
            raise DataError(f"{where}: {len(both)} patients are in {first} and in {second}: {', '.join(both[:10])}; leave each on one side")


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

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
    folds       the training and the test patients in parts, each of which may be the test side in turn; () where there are none
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    validation: tuple[str, ...] = ()
    folds: tuple[tuple[str, ...], ...] = ()

    @property
    def held_out(self) -> tuple[str, ...]:
        """The patients that nothing may be trained on."""
        return tuple(sorted({*self.test, *self.validation}))

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """The patients that some run tells apart: the sides, or the folds in the place of train and test."""
        if not self.folds:
            return {side: getattr(self, side) for side in SIDES}
        return {**{f"fold {number}": fold for number, fold in enumerate(self.folds)}, "validation": self.validation}

    def of_fold(self, fold: int | None) -> Split:
        """The same patients with those of one fold as the test side and all others of the folds in training.

        None: as it is. ConfigError where there is no such fold.
        """
        if fold is None:
            return self
        if fold >= len(self.folds):
            known = f"has the folds 0 to {len(self.folds) - 1}; take one of them"
            none = "has no folds; prepare the scans with folds=5, or leave fold away"
            raise ConfigError(f"data.fold = {fold}: the split {known if self.folds else none}")
        train = sorted(patient for number, part in enumerate(self.folds) if number != fold for patient in part)
        return replace(self, train=tuple(train), test=self.folds[fold])

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
    test: set[str] = set()
    validation: set[str] = set()
    for group in _shuffled_strata(table, seed):
        num_test = round(test_fraction * len(group))
        if test_fraction > 0 and len(group) > 1:
            num_test = min(max(num_test, 1), len(group) - 1)
        num_validation = min(round(validation_fraction * len(group)), len(group) - num_test)
        test.update(group[:num_test])
        validation.update(group[num_test : num_test + num_validation])
    train = set(table["patient"]) - test - validation
    return Split(*(tuple(sorted(side)) for side in (train, test, validation)))


def make_folds(table: pd.DataFrame, *, folds: int, seed: int, validation_fraction: float = 0.0) -> Split:
    """Deal the patients out to folds, those with a label as evenly as those without; fold 0 is the test side of the split itself.

    table: a manifest without a split of its own. Validation patients are drawn first and are in no fold: whichever fold tests, they
    train nothing. Raises DataError where the manifest has a split, or a fold would be empty.
    """
    if (table["split"] != "").any():
        raise DataError(f"folds = {folds}: the manifest says in its column split who tests; take the column out, or leave folds away")
    dealt: list[str] = []
    validation: set[str] = set()
    for group in _shuffled_strata(table, seed):
        num_validation = round(validation_fraction * len(group))
        validation.update(group[:num_validation])
        dealt += group[num_validation:]
    if len(dealt) < folds:
        raise DataError(f"folds = {folds}: there are {len(dealt)} patients to deal out; take fewer folds, or more patients")
    # The strata lie one after the other, so that each is dealt out evenly, and so are all together.
    parts = tuple(tuple(sorted(dealt[number::folds])) for number in range(folds))
    return Split((), (), tuple(sorted(validation)), parts).of_fold(0)


def with_known_sides(drawn: Split, before: Split) -> Split:
    """A draw in which patients that had a side, or a fold, keep it; the draw says where the others go.

    So a scan that comes or goes makes no test patient a training patient. Where a side that the draw fills would be empty then, the draw
    itself.
    """
    had = {patient: part for part, patients in before.parts.items() for patient in patients}
    parts: dict[str, list[str]] = {part: [] for part in drawn.parts}
    for part, patients in drawn.parts.items():
        for patient in patients:
            before_part = had.get(patient, part)  # somebody may have taken the folds out by hand
            parts[before_part if before_part in parts else part].append(patient)
    if any(patients and not parts[part] for part, patients in drawn.parts.items()):
        return drawn
    validation = tuple(sorted(parts.pop("validation")))
    first, second, *more = (tuple(sorted(patients)) for patients in parts.values())
    return Split((), (), validation, (first, second, *more)).of_fold(0) if drawn.folds else Split(first, second, validation)


def moved_patients(before: Split, now: Split) -> list[tuple[str, str, str]]:
    """(patient, part before, part now) of those in both that are not where they were."""
    had = {patient: part for part, patients in before.parts.items() for patient in patients}
    return [(p, had[p], part) for part, patients in now.parts.items() for p in patients if had.get(p, part) != part]


def _shuffled_strata(table: pd.DataFrame, seed: int) -> list[list[str]]:
    """The patients with a label and those without, each in an order drawn at random."""
    labelled = set(table["patient"][table["label"] != ""])
    patients = sorted(set(table["patient"]))
    rng = np.random.default_rng(seed)
    strata = ([p for p in patients if p in labelled], [p for p in patients if p not in labelled])
    return [[stratum[i] for i in rng.permutation(len(stratum))] for stratum in strata]


def write_split(path: Path, split: Split, seed: int, drawn: Mapping[str, object] | None = None) -> None:
    """Write split.json, atomically; what a split does not have is not in it. drawn: how it was, for `read_drawn`."""
    sides = {side: list(getattr(split, side)) for side in SIDES if side != "validation" or split.validation}
    folds = {"folds": [list(fold) for fold in split.folds]} if split.folds else {}
    how = {"drawn": dict(drawn)} if drawn is not None else {}
    write_json(path, {"schema": SCHEMA, "seed": seed, **how, **sides, **folds})


def read_drawn(path: Path) -> tuple[Split, object] | None:
    """The split of an earlier preparation, whoever is in it, and how it was drawn; None where there is none, or none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        everybody = [*content["train"], *content["test"], *content.get("validation", [])]
        return read_split(path, everybody), content.get("drawn")
    except (DataError, OSError, ValueError, KeyError, TypeError):
        return None


def read_split(path: Path, patients: Iterable[str]) -> Split:
    """Read split.json and hold it against the patients of a store.

    Raises DataError: a patient on both sides, patients that the store lacks, or that have no side.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        sides, folds = [content["train"], content["test"], content.get("validation", [])], content.get("folds", [])
        if not all(isinstance(p, str) for side in (*sides, *folds) for p in side) or not all(isinstance(s, list) for s in (*sides, *folds)):
            raise ValueError("train, test, validation and each of folds must be lists of patient ids in quotes")
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; `medcl3d prepare` writes it") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f'{path}: not a split ({error}); needed is {{"schema": 1, "train": ["id"], "test": ["id"]}}') from None
    if content.get("schema") != SCHEMA:
        raise DataError(f"{path}: schema is {content.get('schema')!r}, this version reads {SCHEMA}")
    train, test, validation = (tuple(sorted(set(side))) for side in sides)
    split = Split(train, test, validation, tuple(tuple(sorted(set(fold))) for fold in folds))
    _refuse_both(str(path), split)
    _refuse_uneven_folds(path, split)
    known, placed = set(patients), {*split.train, *split.held_out}
    for wrong, what in ((placed - known, "are not in the store"), (known - placed, "of the store are on no side")):
        if wrong:
            ids = sorted(wrong)
            raise DataError(f"{path}: {len(ids)} patients {what}: {', '.join(ids[:10])}; correct the file, or prepare again")
    return split


def _refuse_both(where: str, split: Split) -> None:
    sides = {side: getattr(split, side) for side in SIDES}
    for parts in (sides, split.parts):
        for first, second in combinations(parts, 2):
            both = sorted(set(parts[first]) & set(parts[second]))
            if both:
                ids = ", ".join(both[:10])
                raise DataError(f"{where}: {len(both)} patients are in {first} and in {second}: {ids}; leave each on one side")


def _refuse_uneven_folds(path: Path, split: Split) -> None:
    """DataError unless the folds, where there are some, hold all patients of train and test, and nobody else."""
    if not split.folds:
        return
    wrong = sorted({*split.train, *split.test} ^ {patient for fold in split.folds for patient in fold})
    if wrong or len(split.folds) < 2 or not all(split.folds):
        ids = f" ({len(wrong)} differ: {', '.join(wrong[:10])})" if wrong else ""
        raise DataError(f"{path}: two folds or more share out the patients of train and test{ids}; correct the file, or prepare again")


def draw_labelled(
    split: Split, patients_with_label: Sequence[str], num: int, seed: int, strata: Mapping[str, int] | None = None, each_first: bool = False
) -> tuple[str, ...]:
    """The training patients whose labels may be used: `num` of them, sorted.

    strata      patient -> class; the drawn are then shared out over the classes in proportion, as evenly as can be
    each_first  the first of each class comes before the second of any: shares are rounded up, not to the nearest

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
            place[patient] = (seen[strata[patient]] + (0.0 if each_first else 0.5)) / sizes[strata[patient]]
            seen[strata[patient]] += 1
        order.sort(key=lambda patient: place[patient])
    return tuple(sorted(order[:num]))

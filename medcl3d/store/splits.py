"""Splits by patient into training, test and validation sides, or folds; stored in split.json."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from medcl3d.core.errors import ConfigError, DataError
from medcl3d.io.atomic import write_json

SCHEMA = 1
SIDES = ("train", "test", "validation")
CORRECT = "correct the file, or prepare again"
Measured = Literal["test", "validation"]


@dataclass(frozen=True)
class Split:
    """Patients of each side, sorted.

    validation  patients for model selection, so that test patients are evaluated only once
    folds       the training and test patients in parts, any of which can be the test side; () if none
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    validation: tuple[str, ...] = ()
    folds: tuple[tuple[str, ...], ...] = ()

    @property
    def held_out(self) -> tuple[str, ...]:
        """Test and validation patients, which are never used in training."""
        return tuple(sorted({*self.test, *self.validation}))

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Patients by part: the sides, or the folds in place of train and test."""
        if not self.folds:
            return {side: getattr(self, side) for side in SIDES}
        folds = {f"fold {number}": fold for number, fold in enumerate(self.folds)}
        return {**folds, "validation": self.validation}

    def of_fold(self, fold: int | None) -> Split:
        """The split with one fold as the test side and all other folds as the training side.

        None: unchanged. ConfigError if the fold does not exist.
        """
        if fold is None:
            return self
        if fold >= len(self.folds):
            known = f"has the folds 0 to {len(self.folds) - 1}; choose one of them"
            none = "has no folds; prepare the scans with folds=5, or remove fold"
            raise ConfigError("data.fold", fold, f"the split {(known if self.folds else none)}")
        others = chain(*self.folds[:fold], *self.folds[fold + 1 :])
        return replace(self, train=tuple(sorted(others)), test=self.folds[fold])

    def measured_on(self, side: Measured) -> Split:
        """The split with `side` as the test side. ConfigError if it has no patients."""
        if side == "test":
            return self
        if not self.validation:
            problem = "validation: the split has no validation patients"
            remedy = "prepare the scans with validation_fraction=0.2, or name them in the column split"
            raise ConfigError("measured_on", None, problem, remedy)
        return replace(self, test=self.validation, validation=self.test)


def make_split(
    table: pd.DataFrame,
    *,
    test_fraction: float,
    seed: int,
    validation_fraction: float = 0.0,
    unlabelled: Literal["split", "train"] = "split",
) -> Split:
    """Draw test and validation patients, with the same fractions among patients with and without a label.

    table       a manifest; its column `split`, if not empty, is used unchanged
    unlabelled  train: patients without a label are only drawn from if no patient has one

    Test patients do not depend on `validation_fraction`, those with a label not on `unlabelled`. Raises
    DataError if a patient is on two sides, or if only some patients have a side.
    """
    given = table[table["split"] != ""]
    if len(given):
        rest = sorted(set(table["patient"]) - set(given["patient"]))
        if rest:
            problem = f"{len(rest)} patients have no split in the manifest: {', '.join(rest[:10])}"
            raise DataError("", problem, "give all patients one, or none")
        split = Split(*(tuple(sorted(set(given["patient"][given["split"] == side]))) for side in SIDES))
        _refuse_overlap("the manifest", split)
        return split
    test: set[str] = set()
    validation: set[str] = set()
    labelled, others = _shuffled_strata(table, seed)
    for group in [labelled] if labelled and unlabelled == "train" else [labelled, others]:
        num_test = round(test_fraction * len(group))
        if test_fraction > 0 and len(group) > 1:
            num_test = min(max(num_test, 1), len(group) - 1)
        num_validation = min(round(validation_fraction * len(group)), len(group) - num_test)
        test.update(group[:num_test])
        validation.update(group[num_test : num_test + num_validation])
    train = set(table["patient"]) - test - validation
    return Split(*(tuple(sorted(side)) for side in (train, test, validation)))


def make_folds(table: pd.DataFrame, *, folds: int, seed: int, validation_fraction: float = 0.0) -> Split:
    """Distribute the patients evenly over folds, with and without a label; fold 0 is the test side.

    table: a manifest without a split. Validation patients are drawn first and are in no fold, so that they
    are never trained on. Raises DataError if the manifest has a split, or if a fold would be empty.
    """
    if (table["split"] != "").any():
        problem = f"folds = {folds}: the manifest's column split already defines the sides"
        raise DataError("", problem, "remove the column, or remove folds")
    in_folds: list[str] = []
    validation: set[str] = set()
    for group in _shuffled_strata(table, seed):
        num_validation = round(validation_fraction * len(group))
        validation.update(group[:num_validation])
        in_folds += group[num_validation:]
    if len(in_folds) < folds:
        problem = f"folds = {folds}: there are only {len(in_folds)} patients for the folds"
        raise DataError("", problem, "use fewer folds, or more patients")
    # The strata follow each other, so that every stratum and their total are distributed evenly.
    parts = tuple(tuple(sorted(in_folds[number::folds])) for number in range(folds))
    return Split((), (), tuple(sorted(validation)), parts).of_fold(0)


def with_previous_sides(drawn: Split, before: Split) -> Split:
    """The drawn split, except that patients in the previous split keep their side or fold.

    Added or removed scans therefore do not turn a test patient into a training patient. If that would empty a
    side, the drawn split is returned unchanged.
    """
    previous = {patient: part for part, patients in before.parts.items() for patient in patients}
    parts: dict[str, list[str]] = {part: [] for part in drawn.parts}
    for part, patients in drawn.parts.items():
        for patient in patients:
            previous_part = previous.get(patient, part)  # folds may have been removed by hand
            parts[previous_part if previous_part in parts else part].append(patient)
    if any(patients and not parts[part] for part, patients in drawn.parts.items()):
        return drawn
    validation = tuple(sorted(parts.pop("validation")))
    first, second, *more = (tuple(sorted(patients)) for patients in parts.values())
    if not drawn.folds:
        return Split(first, second, validation)
    return Split((), (), validation, (first, second, *more)).of_fold(0)


def moved_patients(before: Split, now: Split) -> list[tuple[str, str, str]]:
    """(patient, part before, part now) of the patients in both splits whose part changed."""
    previous = {patient: part for part, patients in before.parts.items() for patient in patients}
    patients = [(patient, part) for part, of_part in now.parts.items() for patient in of_part]
    return [(p, previous[p], part) for p, part in patients if previous.get(p, part) != part]


def _shuffled_strata(table: pd.DataFrame, seed: int) -> list[list[str]]:
    """The patients with a label and those without, each in random order."""
    labelled = set(table["patient"][table["label"] != ""])
    patients = sorted(set(table["patient"]))
    rng = np.random.default_rng(seed)
    strata = ([p for p in patients if p in labelled], [p for p in patients if p not in labelled])
    return [[stratum[i] for i in rng.permutation(len(stratum))] for stratum in strata]


def write_split(path: Path, split: Split, seed: int, drawn: Mapping[str, object] | None = None) -> None:
    """Write split.json atomically, without empty parts.

    drawn: the options of the draw, for `read_previous_split`.
    """
    sides = {side: list(getattr(split, side)) for side in SIDES if side != "validation" or split.validation}
    folds = {"folds": [list(fold) for fold in split.folds]} if split.folds else {}
    options = {"drawn": dict(drawn)} if drawn is not None else {}
    write_json(path, {"schema": SCHEMA, "seed": seed, **options, **sides, **folds})


def read_previous_split(path: Path) -> tuple[Split, object] | None:
    """The split of an earlier preparation and the options of its draw; None if unreadable."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        patients = [*content["train"], *content["test"], *content.get("validation", [])]
        return read_split(path, patients), content.get("drawn")
    except (DataError, OSError, ValueError, KeyError, TypeError):
        return None


def read_split(path: Path, patients: Iterable[str]) -> Split:
    """Read split.json and compare it with the patients of a store.

    Raises DataError: a patient on two sides, patients that are not in the store, or that have no side.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        sides = [content["train"], content["test"], content.get("validation", [])]
        folds = content.get("folds", [])
        parts = (*sides, *folds)
        are_lists = all(isinstance(part, list) for part in parts)
        if not are_lists or not all(isinstance(patient, str) for patient in chain(*parts)):
            raise ValueError("train, test, validation and each of folds are lists of patient ids in quotes")
    except FileNotFoundError:
        raise DataError(path, "there is no such file", "`medcl3d prepare` writes it") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = 'needed is {"schema": 1, "train": ["id"], "test": ["id"]}'
        raise DataError(path, f"not a split ({error})", remedy) from None
    if content.get("schema") != SCHEMA:
        raise DataError(path, f"schema is {content.get('schema')!r}, this version reads {SCHEMA}")
    train, test, validation = (tuple(sorted(set(side))) for side in sides)
    split = Split(train, test, validation, tuple(tuple(sorted(set(fold))) for fold in folds))
    _refuse_overlap(str(path), split)
    _refuse_other_folds(path, split)
    known, placed = set(patients), {*split.train, *split.held_out}
    unknown = {"are not in the store": placed - known, "of the store have no side": known - placed}
    for what, wrong in unknown.items():
        if wrong:
            ids = ", ".join(sorted(wrong)[:10])
            raise DataError(path, f"{len(wrong)} patients {what}: {ids}", CORRECT)
    return split


def _refuse_overlap(where: str, split: Split) -> None:
    sides = {side: getattr(split, side) for side in SIDES}
    for parts in (sides, split.parts):
        for first, second in combinations(parts, 2):
            both = sorted(set(parts[first]) & set(parts[second]))
            if both:
                problem = f"{len(both)} patients are in {first} and in {second}: {', '.join(both[:10])}"
                raise DataError(where, problem, "leave each on one side")


def _refuse_other_folds(path: Path, split: Split) -> None:
    """DataError if the folds are not exactly the training and test patients, or if there is only one."""
    if not split.folds:
        return
    wrong = sorted({*split.train, *split.test} ^ set(chain(*split.folds)))
    if wrong or len(split.folds) < 2 or not all(split.folds):
        ids = f" ({len(wrong)} differ: {', '.join(wrong[:10])})" if wrong else ""
        problem = f"two or more folds must contain exactly the patients of train and test{ids}"
        raise DataError(path, problem, CORRECT)


def select_labelled(
    split: Split,
    patients_with_label: Sequence[str],
    num: int,
    seed: int,
    strata: Mapping[str, int] | None = None,
    each_first: bool = False,
) -> tuple[str, ...]:
    """Draw `num` training patients whose labels may be used, sorted.

    strata      patient -> class; the patients are then drawn in proportion to the classes
    each_first  the first of each class comes before the second of any: proportions are rounded up, not to the
                nearest

    With the same seed, a smaller selection is always a subset of a larger one, so that curves over `num` are
    nested. Raises ConfigError if fewer than `num` have a label.
    """
    labelled = sorted(set(split.train) & set(patients_with_label))
    if not 0 < num <= len(labelled):
        problem = f"the training side has {len(labelled)} patients with a label"
        raise ConfigError("num_labelled", num, problem, f"choose 1 to {len(labelled)}")
    order = [labelled[i] for i in np.random.default_rng(seed).permutation(len(labelled))]
    if strata is not None:
        sizes, seen = Counter(strata[p] for p in labelled), Counter[int]()
        quantile: dict[str, float] = {}  # of a patient within its class
        for patient in order:
            of = strata[patient]
            quantile[patient] = (seen[of] + (0.0 if each_first else 0.5)) / sizes[of]
            seen[of] += 1
        order.sort(key=lambda patient: quantile[patient])
    return tuple(sorted(order[:num]))

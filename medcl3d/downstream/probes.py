"""What is asked of a frozen encoder's features; each probe's fields are its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from pydantic import Field
from pydantic.dataclasses import dataclass
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from medcl3d.config import STRICT
from medcl3d.downstream import Task
from medcl3d.errors import DataError
from medcl3d.evaluation.metrics import over_patients
from medcl3d.evaluation.retrieval import TIE, measures
from medcl3d.evaluation.statistics import Interval
from medcl3d.registry import Count, Positive

if TYPE_CHECKING:
    from medcl3d.data.store import Store
    from medcl3d.downstream.examples import Example
    from medcl3d.types import Triple

MAX_ITERATIONS = 1000
ASKED_AT_ONCE = 1024  # of the test side: their cosines with all of the training side are in memory
SHORTEST = 1e-6  # deviations of the training side


@plain_dataclass(frozen=True)
class Labelled:
    """Features ``[N, F]`` with class indices ``[N]`` (of findings: ``Float[N, K]``, NaN where not known) and patients."""

    features: np.ndarray
    targets: np.ndarray
    patients: tuple[str, ...]


class Probe(Protocol):
    """What learns classes from labelled features, and answers for others."""

    def probabilities(self, train: Labelled, test: np.ndarray, num_classes: int, seed: int) -> np.ndarray:
        """``Float64[N, K]`` of the test features ``[N, F]``."""


@runtime_checkable
class Probed(Task, Protocol):
    """A task that frozen features can be asked about: one with classes or findings."""

    def check(self, store: Store) -> None:
        """ConfigError where the store cannot tell what is asked."""

    def examples(self, store: Store, scans: Sequence[int], patch_size: Triple) -> list[Example]:
        """What is asked: the same in every run."""

    def labels(self, store: Store, examples: Sequence[Example]) -> np.ndarray:
        """What is true of examples, as `Labelled.targets`."""

    def asked(
        self, probe: Probe, known: Labelled, features: np.ndarray, examples: Sequence[Example], store: Store, seed: int
    ) -> tuple[dict[str, Interval], list[dict[str, Any]]]:
        """What a probe that learnt what is known says of the test examples: metrics, and rows for each. DataError."""


def standardiser(train: np.ndarray) -> StandardScaler:
    """Each feature less its mean, divided by its deviation, both of the training side.

    Without it cosines say little: what all scans have in common is most of a feature vector.
    """
    return StandardScaler().fit(finite(train))


def finite(features: np.ndarray) -> np.ndarray:
    """The same features ``[N, F]``. DataError where some are no numbers."""
    wrong = int((~np.isfinite(features)).any(1).sum())
    if wrong:
        raise DataError(f"the encoder's features of {wrong} of {len(features)} crops or scans are no finite numbers: take other weights")
    return features


def directions(features: np.ndarray) -> np.ndarray:
    """Unit vectors of standardised features ``[N, F]``. DataError where some are no numbers.

    What is shorter than `SHORTEST` is the rounding of features that never change, and stays near 0: it is as like to one as to another.
    """
    features = finite(features)
    unit: np.ndarray = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), SHORTEST)
    return unit


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LinearProbe:
    """Logistic regression on standardised features, classes weighted equally.

    inverse_strengths  of the penalty on squared weights (scikit-learn's C); the one that is best in cross-validation
                       over the training patients is taken, the middle one where no two classes have as many patients as folds
    folds              of that cross-validation

    Source: Alain and Bengio 2017, Understanding intermediate layers using linear classifier probes.
    """

    inverse_strengths: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1e-4, 1e-3, 1e-2, 1e-1)
    folds: Annotated[int, Field(ge=2)] = 3

    def probabilities(self, train: Labelled, test: np.ndarray, num_classes: int, seed: int) -> np.ndarray:
        """``Float64[N, K]`` of the test features ``[N, F]``; 0 for a class without a training example."""
        scale = standardiser(train.features)
        middle = self.inverse_strengths[len(self.inverse_strengths) // 2]
        model = LogisticRegression(C=middle, max_iter=MAX_ITERATIONS, class_weight="balanced")
        x = scale.transform(train.features)
        if len(self.inverse_strengths) > 1 and _fewest_patients_of_two(train) >= self.folds:
            folds = StratifiedGroupKFold(self.folds, shuffle=True, random_state=seed)
            search = GridSearchCV(model, {"C": list(self.inverse_strengths)}, scoring="balanced_accuracy", cv=folds)
            model = search.fit(x, train.targets, groups=np.array(train.patients)).best_estimator_
        else:
            model.fit(x, train.targets)
        return _spread(model.predict_proba(scale.transform(test)), model.classes_, num_classes)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NearestNeighbours:
    """The share of each class among the `k` training examples of highest cosine, after standardising; all where there are fewer.

    Examples that are as like as the k-th share the places that the nearer ones leave, so that their order decides nothing.

    Source: Wu et al. 2018, Unsupervised feature learning via non-parametric instance discrimination (without its temperature).
    """

    k: Count = 20

    def probabilities(self, train: Labelled, test: np.ndarray, num_classes: int, seed: int) -> np.ndarray:
        """``Float64[N, K]`` of the test features ``[N, F]``; nothing is random here."""
        scale, k = standardiser(train.features), min(self.k, len(train.targets))
        known, asked = directions(scale.transform(train.features)), directions(scale.transform(test))
        classes = np.eye(num_classes)[train.targets]
        parts = [asked[start : start + ASKED_AT_ONCE] for start in range(0, len(asked), ASKED_AT_ONCE)]
        return np.concatenate([_among_nearest(part @ known.T, k) @ classes for part in parts]) / k


def _among_nearest(cosine: np.ndarray, k: int) -> np.ndarray:
    """How much of each of M examples is among the k nearest of N others ``[N, M]``: 1 or 0, or a part where it ties with the k-th."""
    kth = np.partition(cosine, -k, axis=1)[:, [-k]]
    nearer, tied = cosine > kth + TIE, np.abs(cosine - kth) <= TIE
    left: np.ndarray = k - nearer.sum(1, keepdims=True)
    return nearer + tied * (left / tied.sum(1, keepdims=True))


def _fewest_patients_of_two(train: Labelled) -> int:
    """How many patients the second of the two commonest classes has: with fewer than folds, a fold would hold one class only."""
    patients = np.array(train.patients)
    return sorted(len(set(patients[train.targets == k].tolist())) for k in np.unique(train.targets))[-2:][0]


def _spread(probabilities: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
    full = np.zeros((len(probabilities), num_classes))
    full[:, classes] = probabilities
    return full


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Retrieval:
    """Given a test scan, which of the other test scans are nearest, and are those of the same group among them?

    same    the column that tells which scans belong together
    differ  a column in which a query and what it is compared with have to differ, as modality (default: none)

    Scans are compared by the cosine of their features, standardised on the training side. A scan's group has to
    hold another scan that it may find, else it is no query. Beside each measure stands what a random order gives. The mean of
    average precisions is mAP. Scans that are equally like a query come in every order (McSherry and Najork 2008): an encoder
    whose features are all one measures chance. Crops are compared alike, as rows of a table with the columns scan, patient and class.
    """

    same: str = "patient"
    differ: str | None = None

    def check_columns(self, table: pd.DataFrame) -> None:
        """DataError where a column is missing."""
        for column in (self.same, self.differ):
            if column is not None and column not in table:
                raise DataError(f"retrieval: the manifest has no column {column!r}; it has {', '.join(map(str, table.columns))}")

    def queries(self, table: pd.DataFrame) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Rows of the test scans that are queries, each with the rows that it is compared with, and which of those match.

        Needs no features, so that a plan is refused before an encoder is trained. DataError where a column is missing or there is none.
        """
        self.check_columns(table)
        group = table[self.same].astype(str).to_numpy()
        kind = np.arange(len(table)) if self.differ is None else table[self.differ].astype(str).to_numpy()
        found = []
        for query in range(len(table)):
            gallery = np.flatnonzero(kind != kind[query])
            matches = group[gallery] == group[query]
            if matches.any() and not matches.all():
                found.append((query, gallery, matches))
        if not found:
            other = f" with another {self.differ}" if self.differ else ""
            raise DataError(
                f"retrieval: no test scan has another{other} of the same {self.same}; name other columns, or test more patients"
            )
        return found

    def measure(
        self, train: np.ndarray, test: np.ndarray, table: pd.DataFrame, seed: int
    ) -> tuple[dict[str, Interval], list[dict[str, object]]]:
        """Recall at 1 and 5, mean reciprocal rank of the first match, mAP, with intervals over patients; one row a query.

        train, test  features ``[N, F]`` of whole scans; table: the rows of the test scans
        DataError where a column is missing or no scan is a query.
        """
        queries = self.queries(table)
        scale = standardiser(train)
        features = directions(scale.transform(test))
        cosine = features @ features.T
        cases: list[dict[str, object]] = []
        for query, gallery, matches in queries:
            scan, patient = (str(table[column].iloc[query]) for column in ("scan", "patient"))
            cases.append({"scan": scan, "patient": patient, "gallery": len(gallery), **measures(cosine[query, gallery], matches)})
        patients = [str(case["patient"]) for case in cases]
        names = [name for name in cases[0] if name not in ("scan", "patient", "gallery")]
        found = {name: over_patients([float(str(case[name])) for case in cases], patients, seed) for name in names}
        return {name: interval for name, interval in found.items() if interval is not None}, cases


def check_classes(train: Labelled, names: Sequence[str]) -> None:
    """DataError where the labelled examples are of one class: nothing could be told apart."""
    if len(set(train.targets.tolist())) < 2:
        raise DataError(f"all labelled examples are {names[int(train.targets[0])]}; raise num_labelled, or take another seed")

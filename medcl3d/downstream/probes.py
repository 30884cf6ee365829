"""Probes of frozen features; the fields of a probe are its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from typing import TYPE_CHECKING, Annotated, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from pydantic import Field
from pydantic.dataclasses import dataclass

from medcl3d.config.field_types import STRICT, Positive, PositiveInt, Size
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.core.geometry import Box, triple
from medcl3d.downstream.crop_dataset import Example, whole_scans
from medcl3d.downstream.targets import Measurement, case_rows, intervals_of
from medcl3d.downstream.task import Task
from medcl3d.evaluation.metrics.retrieval import TIE, measures

if TYPE_CHECKING:
    from sklearn.preprocessing import StandardScaler

    from medcl3d.core.geometry import Triple
    from medcl3d.store.store import Store

MAX_ITERATIONS = 1000
CHUNK_SIZE = 1024  # test examples whose cosines with all training examples are in memory at a time
MIN_NORM = 1e-6  # in standard deviations of the training features


@plain_dataclass(frozen=True)
class Labelled:
    """Features ``[N, F]``, class indices ``[N]`` (findings: ``Float[N, K]``, NaN if unknown), patients."""

    features: np.ndarray
    targets: np.ndarray
    patients: tuple[str, ...]


class Probe(Protocol):
    """A classifier trained on labelled features."""

    def probabilities(self, train: Labelled, test: np.ndarray, num_classes: int, seed: int) -> np.ndarray:
        """Class probabilities ``Float64[N, K]`` of test features ``[N, F]``."""


@runtime_checkable
class Probed(Task, Protocol):
    """A task for probes of frozen features: one with classes or findings."""

    def check(self, store: Store) -> None:
        """ConfigError if the store lacks the targets."""

    def examples(self, store: Store, scans: Sequence[int], patch_size: Triple) -> list[Example]:
        """The examples: the same in every run."""

    def probe_metrics(
        self,
        probe: Probe,
        known: Labelled,
        features: np.ndarray,
        examples: Sequence[Example],
        store: Store,
        seed: int,
    ) -> Measurement:
        """Metrics on the test examples of a probe trained on `known`, and a row per example.

        DataError if it cannot be trained.
        """


def standardiser(train: np.ndarray) -> StandardScaler:
    """Standardise features with the mean and standard deviation of the training features.

    Otherwise cosines vary little, since the mean of all scans dominates feature vectors.
    """
    from sklearn.preprocessing import StandardScaler  # here and below: its import takes a second

    return StandardScaler().fit(finite(train))


def finite(features: np.ndarray) -> np.ndarray:
    """Return the features ``[N, F]``. DataError if some are not finite."""
    wrong = int((~np.isfinite(features)).any(1).sum())
    if wrong:
        raise DataError(
            problem=f"the encoder's features of {wrong} of {len(features)} crops or scans are not finite",
            remedy="use other weights",
        )
    return features


def directions(features: np.ndarray) -> np.ndarray:
    """Unit vectors of standardised features ``[N, F]``. DataError if some are not finite.

    Vectors shorter than `MIN_NORM` are rounding errors of constant features: they stay near 0.
    """
    features = finite(features)
    unit: np.ndarray = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), MIN_NORM)
    return unit


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LinearProbe:
    """Logistic regression on standardised features, classes weighted equally.

    inverse_strengths  inverse strengths of the L2 penalty (scikit-learn's C); the best in cross-validation
                       over training patients is used, or the middle one unless two classes have at least as
                       many patients as folds
    folds              number of folds of that cross-validation

    Source: Alain and Bengio 2017, Understanding intermediate layers using linear classifier probes.
    """

    inverse_strengths: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1e-4, 1e-3, 1e-2, 1e-1)
    folds: Annotated[int, Field(ge=2)] = 3

    def probabilities(self, train: Labelled, test: np.ndarray, num_classes: int, seed: int) -> np.ndarray:
        """Class probabilities ``Float64[N, K]`` of test features ``[N, F]``.

        0 for a class without a training example.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold

        scale = standardiser(train.features)
        middle = self.inverse_strengths[len(self.inverse_strengths) // 2]
        model = LogisticRegression(C=middle, max_iter=MAX_ITERATIONS, class_weight="balanced")
        x = scale.transform(train.features)
        if len(self.inverse_strengths) > 1 and _fewest_patients_of_two(train) >= self.folds:
            folds = StratifiedGroupKFold(self.folds, shuffle=True, random_state=seed)
            search = GridSearchCV(
                model, {"C": list(self.inverse_strengths)}, scoring="balanced_accuracy", cv=folds
            )
            model = search.fit(x, train.targets, groups=np.array(train.patients)).best_estimator_
        else:
            model.fit(x, train.targets)
        return _all_classes(model.predict_proba(scale.transform(test)), model.classes_, num_classes)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NearestNeighbours:
    """The fraction of each class among the `k` training examples of highest cosine, after standardising.

    k  number of neighbours, at most the number of training examples

    Examples tied with the k-th share the remaining weight, so that their order has no effect.

    Source: Wu et al. 2018, Unsupervised feature learning via non-parametric instance discrimination (without
    its temperature).
    """

    k: PositiveInt = 20

    def probabilities(self, train: Labelled, test: np.ndarray, num_classes: int, seed: int) -> np.ndarray:
        """Class probabilities ``Float64[N, K]`` of test features ``[N, F]``; deterministic."""
        scale, k = standardiser(train.features), min(self.k, len(train.targets))
        known, queries = directions(scale.transform(train.features)), directions(scale.transform(test))
        classes = np.eye(num_classes)[train.targets]
        parts = [queries[start : start + CHUNK_SIZE] for start in range(0, len(queries), CHUNK_SIZE)]
        return np.concatenate([_among_nearest(part @ known.T, k) @ classes for part in parts]) / k


def _among_nearest(cosine: np.ndarray, k: int) -> np.ndarray:
    """Weight ``[N, M]`` of M examples among the k nearest of N queries: 1, 0, or a fraction for ties."""
    kth = np.partition(cosine, -k, axis=1)[:, [-k]]
    nearer, tied = cosine > kth + TIE, np.abs(cosine - kth) <= TIE
    remaining = k - nearer.sum(1, keepdims=True)
    weight: np.ndarray = nearer + tied * (remaining / tied.sum(1, keepdims=True))
    return weight


def _fewest_patients_of_two(train: Labelled) -> int:
    """Number of patients of the second most common class.

    If less than the folds, a fold would have only one class.
    """
    patients = np.array(train.patients)
    return sorted(len(set(patients[train.targets == k].tolist())) for k in np.unique(train.targets))[-2:][0]


def _all_classes(probabilities: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
    full = np.zeros((len(probabilities), num_classes))
    full[:, classes] = probabilities
    return full


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Retrieval:
    """Retrieval of test scans of the same group by their features.

    same    column that defines the groups
    differ  column in which a query and its gallery must differ, for example modality (default: none)

    Scans are compared by the cosine of their features, standardised on training scans. A scan is a query only
    if its gallery contains another scan of its group. Scans without a value of `same` or `differ` are neither
    queries nor in a gallery. Each measure is reported with its value for a random order. The mean of average
    precisions is mAP. Ties are averaged over all orders (McSherry and Najork 2008), so that constant features
    measure chance. Crops are compared in the same way, as rows of a table with the columns scan, patient and
    class.
    """

    same: str = "patient"
    differ: str | None = None

    def check_columns(self, table: pd.DataFrame) -> None:
        """DataError if a column is missing."""
        for column in (self.same, self.differ):
            if column is not None and column not in table:
                problem = f"the manifest has no column {column!r}"
                remedy = f"it has {', '.join(map(str, table.columns))}"
                raise DataError("retrieval", problem, remedy, field="retrieval")

    def known(self, table: pd.DataFrame) -> np.ndarray:
        """``Bool[N]``: whether a row has a value of `same` and of `differ`."""
        columns = [table[name] for name in (self.same, self.differ) if name is not None]
        missing = [column.isna() | (column.astype(str).str.strip() == "") for column in columns]
        known: np.ndarray = ~np.any(missing, axis=0)
        return known

    def queries(self, table: pd.DataFrame) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Queries as (row, rows of the gallery, whether each of them matches).

        Needs no features, so that a configuration can be refused before training. DataError if a column is
        missing or there is no query.
        """
        self.check_columns(table)
        known = self.known(table)
        group, kind = (table[name].astype(str).to_numpy() for name in (self.same, self.differ or self.same))
        found = []
        for query in np.flatnonzero(known).tolist():
            other = known & ((kind != kind[query]) | (self.differ is None))
            other[query] = False
            gallery = np.flatnonzero(other)
            matches = group[gallery] == group[query]
            if matches.any() and not matches.all():
                found.append((query, gallery, matches))
        if not found:
            another = f" with another {self.differ}" if self.differ else ""
            problem = f"no test scan has another{another} of the same {self.same}"
            remedy = "set other columns, or use more test patients"
            raise DataError("retrieval", problem, remedy, field="retrieval")
        return found

    def measure(self, train: np.ndarray, test: np.ndarray, table: pd.DataFrame, seed: int) -> Measurement:
        """Recall at 1 and 5, mean reciprocal rank, mAP, with intervals over patients; one row per query.

        train, test  features ``[N, F]`` of whole scans; table: the rows of the test scans
        DataError if a column is missing or no scan is a query.
        """
        queries = self.queries(table)
        scale = standardiser(train)
        features = directions(scale.transform(test))
        cosine = features @ features.T
        rows = case_rows(table)
        cases = [
            {**rows[query], "gallery": len(gallery), **measures(cosine[query, gallery], matches)}
            for query, gallery, matches in queries
        ]
        names = [name for name in cases[0] if name not in ("scan", "patient", "gallery")]
        return intervals_of(cases, names, seed), cases


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ScanRetrieval(Retrieval):
    """Retrieval of test scans of the same group by their features.

    same           column that defines the groups
    differ         column in which a query and its gallery must differ, for example modality (default: none)
    central_patch  voxels of one crop at the centre of each scan, which represents it: scans are then not
                   recognised by their field of view (default: crops that cover the scan)

    Scans are compared as described in :class:`Retrieval`.
    """

    central_patch: Size | None = None

    def examples(self, store: Store, scans: Sequence[int], patch_size: Triple) -> list[Example]:
        """One example per scan. ConfigError if a scan is smaller than `central_patch`."""
        if self.central_patch is None:
            return whole_scans(store, scans, patch_size)
        size = np.array(self.central_patch)
        margins = store.collection.shapes[list(scans)] - size
        small = np.flatnonzero((margins < 0).any(1))
        if len(small):
            first = scans[small[0]]
            name, shape = store.collection.table["scan"].iloc[first], store.collection.shapes[first]
            problem = f"is larger than {len(small)} of {len(scans)} scans; {name} has {shape.tolist()} voxels"
            smallest = store.collection.shapes[list(scans)].min(0).tolist()
            field, value = "retrieval.central_patch", [*self.central_patch]
            raise ConfigError(field, value, problem, f"use at most {smallest}", colon=False)
        return [
            Example(int(scan), (Box(triple(margin // 2), self.central_patch),), 0)
            for scan, margin in zip(scans, margins, strict=True)
        ]


if TYPE_CHECKING:
    # A type checker verifies that each is a probe.
    _PROBES: tuple[type[Probe], ...] = (LinearProbe, NearestNeighbours)


def check_classes(train: Labelled, names: Sequence[str]) -> None:
    """DataError if all labelled examples have the same class."""
    if len(set(train.targets.tolist())) < 2:
        raise DataError(
            problem=f"all labelled examples are {names[int(train.targets[0])]}",
            remedy="raise num_labelled, or use another seed",
        )

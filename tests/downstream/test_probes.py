"""Probes on features with known classes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.neighbors import KNeighborsClassifier

from medcl3d.core.errors import DataError
from medcl3d.downstream.probes import (
    Labelled,
    LinearProbe,
    NearestNeighbours,
    Retrieval,
    check_classes,
    standardiser,
)


def features(num_patients: int, seed: int, gap: float) -> Labelled:
    """Five examples per patient, of three classes `gap` deviations apart; one large feature is noise."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(3, size=num_patients * 5)
    x = rng.normal(size=(len(targets), 6))
    x[:, :3] += gap * np.eye(3)[targets]
    x[:, 5] *= 1e4
    return Labelled(x, targets, tuple(f"p{i // 5}" for i in range(len(targets))))


@pytest.mark.parametrize(
    "probe", [LinearProbe(), LinearProbe(inverse_strengths=(0.1,)), NearestNeighbours(k=10)]
)
def test_a_probe_finds_classes_only_if_features_separate_them(probe: LinearProbe | NearestNeighbours) -> None:
    for gap, low, high in ((6.0, 0.95, 1.0), (0.0, 0.15, 0.5)):
        train, test = features(30, 0, gap), features(40, 1, gap)
        found = probe.probabilities(train, test.features, 4, 0)
        assert found.shape == (200, 4) and found.sum(1) == pytest.approx(1)
        assert (found[:, 3] == 0).all()  # a class without training examples
        assert low <= (found.argmax(1) == test.targets).mean() <= high


@pytest.mark.parametrize("k", [1, 7, 20, 400])
def test_neighbours_without_ties_equal_those_of_scikit_learn_bitwise(
    k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medcl3d.downstream.probes.CHUNK_SIZE", 64)
    train, test = features(30, 0, 1.0), features(40, 1, 1.0)
    scale = standardiser(train.features)
    peer = KNeighborsClassifier(min(k, 150), metric="cosine").fit(
        scale.transform(train.features), train.targets
    )
    found = NearestNeighbours(k=k).probabilities(train, test.features, 3, 0)
    assert np.array_equal(found, peer.predict_proba(scale.transform(test.features)))


def test_tied_neighbours_share_the_remaining_weight() -> None:
    """One-dimensional features: three are on the query's side of the mean, the others are equally far."""
    x, targets = np.array([[1.0], [2.0], [3.0], [-1.0], [-2.0], [-3.0]]), np.array([0, 0, 1, 2, 2, 1])
    for order in (np.arange(6), np.arange(6)[::-1], np.array([4, 0, 5, 2, 1, 3])):
        known = Labelled(x[order], targets[order], ("p",) * 6)
        for k, shares in (
            (1, [2 / 3, 1 / 3, 0]),
            (3, [2 / 3, 1 / 3, 0]),
            (4, [2 / 4, (1 + 1 / 3) / 4, (2 / 3) / 4]),
            (9, [2 / 6, 2 / 6, 2 / 6]),
        ):
            assert NearestNeighbours(k=k).probabilities(known, np.array([[5.0]]), 3, 0)[0] == pytest.approx(
                shares
            )


@pytest.mark.parametrize("constant", [0.0, 0.1, -1234.567])
def test_constant_features_have_all_examples_as_neighbours(constant: float) -> None:
    targets = np.array([0] * 30 + [1] * 10)
    train = Labelled(np.full((40, 8), constant), targets, tuple(map(str, range(40))))
    found = NearestNeighbours(k=5).probabilities(train, np.full((7, 8), constant), 2, 0)
    assert found == pytest.approx(np.tile([0.75, 0.25], (7, 1)))


def test_few_patients_need_no_folds() -> None:
    train = features(2, 0, 6.0)
    assert LinearProbe(folds=3).probabilities(train, train.features, 3, 0).shape == (10, 3)
    assert NearestNeighbours(k=500).probabilities(train, train.features, 3, 0).shape == (10, 3)


@pytest.mark.filterwarnings("error")
def test_a_class_with_fewer_patients_than_folds_gives_the_middle_penalty() -> None:
    """A fold without a class cannot train or test, however many patients the other class has."""
    known = features(30, 0, 2.0)
    rare = Labelled(
        known.features, (np.arange(150) < 10).astype(int), known.patients
    )  # ten examples of two patients
    chosen = LinearProbe(inverse_strengths=(1e-4, 1e-2, 1e-1)).probabilities(rare, known.features, 2, 0)
    assert chosen == pytest.approx(
        LinearProbe(inverse_strengths=(1e-2,)).probabilities(rare, known.features, 2, 0)
    )


def test_one_class_is_refused() -> None:
    with pytest.raises(DataError, match="all labelled examples are liver"):
        check_classes(
            Labelled(np.zeros((3, 2)), np.zeros(3, dtype=int), ("a", "b", "c")), ("liver", "spleen")
        )


def scans(num: int) -> pd.DataFrame:
    rows = [(f"s{i}{m}", f"p{i}", m) for i in range(num) for m in ("CT", "MR")]
    return pd.DataFrame(rows, columns=["scan", "patient", "modality"])


def test_retrieval_finds_patients_if_features_distinguish_them() -> None:
    rng, table = np.random.default_rng(0), scans(12)
    person = np.repeat(rng.normal(size=(12, 8)), 2, axis=0)
    kind = np.tile([[50.0], [-50.0]], (12, 8))
    train = rng.normal(size=(100, 8)) + 3
    known, cases = Retrieval().measure(train, person + 0.1 * rng.normal(size=person.shape) + 3, table, 0)
    assert known["recall@1"].mean > 0.9 and known["reciprocal_rank"].mean > 0.9
    assert known["recall@1"].n == 12 and len(cases) == 24 and cases[0]["gallery"] == 23
    noise, _ = Retrieval().measure(train, rng.normal(size=(24, 8)), table, 0)
    assert noise["recall@5"].low < noise["chance_recall@5"].mean + 0.1 and noise["recall@1"].mean < 0.3
    # If modality dominates the features, comparing only across modalities still finds patients.
    dominated, _ = Retrieval().measure(train, person + kind, table, 0)
    across, rows = Retrieval(differ="modality").measure(train, person + kind, table, 0)
    assert dominated["recall@1"].mean < 0.1
    assert across["recall@1"].mean > dominated["recall@1"].mean and rows[0]["gallery"] == 12


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("constant", [0.0, 0.1, -1234.567])
def test_retrieval_by_constant_features_is_chance(constant: float) -> None:
    """In a table sorted by class, a stable sort of ties would find the first scans of the class."""
    table = pd.DataFrame(
        {
            "scan": [f"s{i}" for i in range(20)],
            "patient": [f"p{i}" for i in range(20)],
            "class": ["a"] * 12 + ["b"] * 8,
        }
    )
    for probe in (Retrieval(same="class"), Retrieval(same="class", differ="patient")):
        found, cases = probe.measure(np.full((50, 16), constant), np.full((20, 16), constant), table, 0)
        assert len(cases) == 20
        for name in ("recall@1", "recall@5", "reciprocal_rank", "average_precision"):
            assert found[name].mean == pytest.approx(found[f"chance_{name}"].mean, abs=1e-12)


def test_retrieval_does_not_depend_on_the_order_of_a_table() -> None:
    """With one-dimensional features, all scans on one side of the mean are tied."""
    rng = np.random.default_rng(0)
    train, test, table = rng.normal(size=(50, 1)), rng.normal(size=(24, 1)), scans(12)
    _, cases = Retrieval().measure(train, test, table, 0)
    order = rng.permutation(24)
    _, again = Retrieval().measure(train, test[order], table.iloc[order], 0)
    by_scan = {case["scan"]: case for case in again}
    assert all(0 < case["reciprocal_rank"] < 1 for case in cases)
    for case in cases:
        assert by_scan[case["scan"]] == pytest.approx(case, abs=1e-12)


@pytest.mark.parametrize("missing", [None, np.nan, "", " "])
@pytest.mark.parametrize("differ", [None, "field"])
def test_retrieval_leaves_scans_without_a_value_out(missing: object, differ: str | None) -> None:
    """They are not found by themselves, nor are they a group of their own."""
    table = pd.DataFrame(
        {
            "scan": ["a1", "a2", "b1", "b2", "c1", "c2"],
            "patient": [
                "a",
                "a",
                "b",
                "b",
                missing if differ is None else "c",
                missing if differ is None else "c",
            ],
            "field": ["1", "3", "1", "3", missing if differ else "1", missing if differ else "3"],
        }
    )
    queries = Retrieval(same="patient", differ=differ).queries(table)
    assert [query for query, _, _ in queries] == [0, 1, 2, 3]
    for query, gallery, matches in queries:
        assert query not in gallery and not {4, 5} & set(gallery.tolist())
        assert gallery[matches].tolist() == [query ^ 1]


def test_non_finite_features_are_refused() -> None:
    test = np.ones((6, 2))
    test[4, 1] = np.nan
    with pytest.raises(DataError, match="features of 1 of 6 crops or scans are not finite"):
        Retrieval().measure(np.random.default_rng(0).normal(size=(9, 2)), test, scans(3), 0)


def test_retrieval_without_a_query_is_refused() -> None:
    table = scans(3)
    with pytest.raises(DataError, match="no column 'phase'"):
        Retrieval(differ="phase").measure(np.ones((2, 2)), np.ones((6, 2)), table, 0)
    with pytest.raises(DataError, match="no test scan has another of the same scan"):
        Retrieval(same="scan").measure(np.ones((2, 2)), np.ones((6, 2)), table, 0)

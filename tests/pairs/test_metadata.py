"""Strategies on the manifest: metadata kernels, tabular neighbours, labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medcl3d.config.field_types import Choice
from medcl3d.core.collection import Collection
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.core.relation import Relation
from medcl3d.losses.contrastive import Tile, contrastive_sum
from medcl3d.pairs.class_labels import ClassLabels
from medcl3d.pairs.combinators import Product
from medcl3d.pairs.metadata_kernel import MetadataKernel
from medcl3d.pairs.metadata_similarity import similarity_between
from medcl3d.pairs.placebo import placebo
from medcl3d.pairs.tabular_neighbours import TabularNeighbours
from tests.pairs.collections import collections, make_collection
from tests.pairs.test_strategies import batch_of_views


def with_holes(collection: Collection, seed: int) -> Collection:
    """The same scans with some ages and sexes missing."""
    rng = np.random.default_rng(seed)
    return collection.with_columns(
        {
            name: np.where(rng.random(len(collection)) < 0.3, np.nan, collection.columns[name])
            for name in ("age", "sex")
        }
    )


def alike(first: dict[str, float], second: dict[str, float], bandwidth: float, combine: str) -> float:
    """The kernel of two scans by hand; missing columns drop out."""
    values = []
    if not math.isnan(first["age"] + second["age"]):
        values.append(math.exp(-((first["age"] - second["age"]) ** 2) / (2 * bandwidth**2)))
    if not math.isnan(first["sex"] + second["sex"]):
        values.append(float(first["sex"] == second["sex"]))
    if not values:
        return 0.0
    return math.prod(values) if combine == "product" else sum(values) / len(values)


@given(
    collection=collections,
    seed=st.integers(0, 1000),
    bandwidth=st.floats(1, 40),
    combine=st.sampled_from(["product", "mean"]),
)
def test_attraction_is_the_kernel(collection: Collection, seed: int, bandwidth: float, combine: Any) -> None:
    strategy = MetadataKernel(columns={"age": bandwidth, "sex": "equal"}, combine=combine)
    changed = with_holes(collection, seed)
    keys = batch_of_views(MetadataKernel(columns={"age": 1.0}), collection, seed)
    keys.metadata.update(
        {name: torch.from_numpy(changed.columns[name][keys.scan.numpy()]) for name in ("age", "sex")}
    )
    relation = strategy.relate(keys, keys, None)
    rows = [{name: float(changed.columns[name][scan]) for name in ("age", "sex")} for scan in keys.scan]
    for i, first in enumerate(rows):
        for j, second in enumerate(rows):
            expected = (
                0.0
                if i == j
                else 1.0
                if keys.sample[i] == keys.sample[j]
                else alike(first, second, bandwidth, combine)
            )
            assert float(relation.positive[i, j]) == pytest.approx(expected, abs=1e-6)
            assert float(relation.negative[i, j]) == pytest.approx(0.0 if i == j else 1 - expected, abs=1e-6)


def test_an_anchor_is_normalised_over_its_own_positives_and_never_over_columns() -> None:
    """In a relation that is not symmetric, sums over columns would give another loss."""
    generator = torch.Generator().manual_seed(0)
    similarity = torch.rand(4, 5, generator=generator, dtype=torch.float64) * 2 - 1
    positive = torch.rand(4, 5, generator=generator, dtype=torch.float64) * torch.tensor(
        [1.0, 0.2, 0.6, 0.1, 0.9]
    )
    found = contrastive_sum(
        similarity,
        torch.eye(5, dtype=torch.float64),
        lambda block, _: Tile(Relation(positive, 1 - positive)),
        0.5,
    )
    s = similarity / 0.5
    log_p = s - torch.logsumexp(s, 1, keepdim=True)

    def loss(normalised: torch.Tensor) -> float:
        return float(-(positive.sum(1).clamp(max=1) * (normalised * log_p).sum(1)).sum())

    assert float(found.loss) == pytest.approx(loss(positive / positive.sum(1, keepdim=True)), rel=1e-9)
    assert abs(float(found.loss) - loss(positive / positive.sum(0))) > 0.1, (
        "normalisation over columns gives another value"
    )


def one_per_patient(collection: Collection) -> Collection:
    return collection.with_columns({"patient": np.arange(len(collection))})


@given(collection=collections, seed=st.integers(0, 1000), k=st.integers(1, 3))
def test_the_second_view_is_of_one_of_the_k_most_similar_patients(
    collection: Collection, seed: int, k: int
) -> None:
    modality = np.zeros(len(collection), dtype=np.int64)
    cohort = one_per_patient(collection).with_columns({"modality": modality})
    strategy = TabularNeighbours(columns={"age": 15.0, "sex": "equal"}, k=k)
    rows = [
        {name: float(cohort.columns[name][scan]) for name in ("age", "sex")} for scan in range(len(cohort))
    ]
    others = sorted(range(1, len(rows)), key=lambda j: -alike(rows[0], rows[j], 15.0, "mean"))
    views = [strategy.sample(cohort, 0, np.random.default_rng([seed, i])) for i in range(8)]
    assert {first.scan for first, _ in views} == {0} and {second.scan for _, second in views} <= set(
        others[:k]
    )
    keys = cohort.keys(views[0], np.zeros(2), np.arange(2))
    expected = alike(rows[0], rows[views[0][1].scan], 15.0, "mean")
    assert float(strategy.relate(keys, keys, None).positive[0, 1]) == pytest.approx(expected, abs=1e-6)


def test_more_similar_patients_are_drawn_more_often() -> None:
    cohort = one_per_patient(make_collection(0, 6)).with_columns(
        {"age": np.array([50.0, 50.0, 60.0, 90.0, 90.0, 90.0]), "modality": np.zeros(6, dtype=np.int64)}
    )
    for weighting, expected in (("uniform", 0.5), ("similarity", 1 / (1 + math.exp(-0.5)))):
        strategy = TabularNeighbours(columns={"age": 10.0}, k=2, weighting=weighting)  # type: ignore[arg-type]
        drawn = [strategy.sample(cohort, 0, np.random.default_rng(i))[1].scan for i in range(600)]
        assert set(drawn) == {1, 2} and abs(drawn.count(1) / 600 - expected) < 0.06


@given(collection=collections, seed=st.integers(0, 1000), threshold=st.floats(0.1, 1.0))
def test_pairs_attract_fully_from_the_threshold_and_repel_below(
    collection: Collection, seed: int, threshold: float
) -> None:
    cohort = one_per_patient(collection).with_columns({"modality": np.zeros(len(collection), dtype=np.int64)})
    soft = TabularNeighbours(columns={"age": 15.0, "sex": "equal"}, k=2)
    hard = TabularNeighbours(columns={"age": 15.0, "sex": "equal"}, k=2, threshold=threshold)
    keys = batch_of_views(soft, cohort, seed)
    values = similarity_between(cohort, keys.scan.numpy(), keys.scan.numpy(), soft.columns, "mean", "ignore")
    same = (keys.sample[:, None] == keys.sample) & (keys.scan[:, None] == keys.scan)
    expected = (torch.from_numpy(values >= threshold) | same) & ~keys.same_item(keys)
    relation = hard.relate(keys, keys, None)
    assert torch.equal(relation.positive, expected.float())
    assert torch.equal(relation.negative, (~expected & ~keys.same_item(keys)).float())
    everyone = np.arange(len(cohort))
    between = similarity_between(cohort, everyone, everyone, soft.columns, "mean", "ignore") - np.eye(
        len(cohort)
    )
    starts = np.flatnonzero((between >= threshold).any(1))
    if len(starts) == 0:
        with pytest.raises(
            DataError, match=r"no other patient has a similarity of threshold = .* lower threshold"
        ):
            hard.anchors(cohort)
        return
    assert hard.anchors(cohort).ids.tolist() == starts.tolist()
    second = hard.sample(cohort, int(starts[0]), np.random.default_rng(seed))[1].scan
    assert between[starts[0], second] >= threshold, "drawn pairs attract"


def test_neighbours_are_matched_in_the_body_and_cross_patients() -> None:
    cohort = one_per_patient(make_collection(0, 6)).with_columns({"modality": np.zeros(6, dtype=np.int64)})
    strategy = TabularNeighbours(columns={"age": 30.0}, k=3, jitter_mm=0.0)
    assert strategy.traits.crosses_patients
    from medcl3d.pairs.boxes import start_at

    first, second = strategy.sample(cohort, 0, np.random.default_rng(0))
    assert (
        tuple(start_at(cohort, second.scan, cohort.corresponding_point(0, second.scan, first.box.center))[0])
        == second.box.start
    )


@given(collection=collections, seed=st.integers(0, 1000))
def test_one_label_attracts_and_unlabelled_scans_attract_themselves(
    collection: Collection, seed: int
) -> None:
    labels = np.random.default_rng(seed).integers(-1, 2, len(collection))
    changed = collection.with_columns({"class": labels})
    strategy = ClassLabels(group_size=1)
    keys = batch_of_views(ClassLabels(column="sex", group_size=1), changed, seed)
    relation = strategy.relate(keys, keys, None)
    own = torch.from_numpy(labels)[keys.scan]
    other = ~keys.same_item(keys)
    expected = (own[:, None] == own) & (own >= 0) | (keys.sample[:, None] == keys.sample)
    assert torch.equal(relation.positive[other] == 1, expected[other])
    assert torch.equal(relation.negative[other], 1 - relation.positive[other])


def two_without_age() -> Collection:
    """Six scans of three patients; the first two have no age, one of them no sex either."""
    collection = make_collection(0, 6)
    missing = {"age": np.arange(6) < 2, "sex": np.arange(6) < 1}
    columns = {name: np.where(where, np.nan, collection.columns[name]) for name, where in missing.items()}
    return one_per_patient(collection).with_columns({**columns, "modality": np.zeros(6, dtype=np.int64)})


MISSING: list[tuple[Any, str, list[int], str]] = [
    (
        MetadataKernel,
        "ignore",
        [0, 1, 2, 3, 4, 5],
        "age is missing in 2, sex is missing in 1 of 6 scans; a pair is compared by its other columns",
    ),
    (MetadataKernel, "own_group", [0, 1, 2, 3, 4, 5], "each of them attracts within its sample only"),
    (MetadataKernel, "drop", [2, 3, 4, 5], "2 x its age or sex is missing"),
    (TabularNeighbours, "ignore", [1, 2, 3, 4, 5], "1 x its age, sex are missing"),
    (TabularNeighbours, "drop", [2, 3, 4, 5], "1 x its age or sex is missing"),
]


@pytest.mark.parametrize(
    ("strategy", "on_missing", "starts", "words"), MISSING, ids=[f"{s.__name__}-{o}" for s, o, *_ in MISSING]
)
def test_scans_with_a_missing_column_are_counted_and_reported(
    strategy: Any, on_missing: str, starts: list[int], words: str
) -> None:
    more = {"k": 2} if strategy is TabularNeighbours else {}
    anchors = strategy(columns={"age": 500.0, "sex": "equal"}, on_missing=on_missing, **more).anchors(
        two_without_age()
    )
    reported = "; ".join(
        [*anchors.notes, *(f"{number} x {reason}" for reason, number in anchors.left_out.items())]
    )
    assert anchors.ids.tolist() == starts and words in reported, reported


@pytest.mark.parametrize(
    "strategy",
    [
        MetadataKernel(columns={"age": 5.0, "sex": "equal"}, on_missing="error"),
        TabularNeighbours(columns={"age": 5.0, "sex": "equal"}, k=2, on_missing="error"),
        ClassLabels(column="sex", group_size=1, on_missing="error"),
    ],
)
def test_a_missing_value_is_refused_with_on_missing_error(strategy: Any) -> None:
    with pytest.raises(DataError, match=r"missing in .* of 6 scans \(first: s0.*and on_missing is error"):
        strategy.anchors(two_without_age())
    strategy.anchors(
        one_per_patient(make_collection(0, 6)).with_columns({"modality": np.zeros(6, dtype=np.int64)})
    )


@pytest.mark.parametrize("on_missing", ["own_group", "drop"])
@given(collection=collections, seed=st.integers(0, 1000))
def test_a_scan_with_a_missing_column_attracts_no_other_sample(
    on_missing: Any, collection: Collection, seed: int
) -> None:
    changed = with_holes(collection, seed)
    keys = batch_of_views(MetadataKernel(columns={"age": 1.0}), collection, seed)
    keys.metadata.update(
        {name: torch.from_numpy(changed.columns[name][keys.scan.numpy()]) for name in ("age", "sex")}
    )
    columns: dict[str, Any] = {"age": 15.0, "sex": "equal"}
    found = MetadataKernel(columns=columns, on_missing=on_missing).relate(keys, keys, None).positive
    ignoring = MetadataKernel(columns=columns).relate(keys, keys, None).positive
    lacks = torch.isnan(keys.metadata["age"] + keys.metadata["sex"])
    same_sample = keys.sample[:, None] == keys.sample
    assert torch.equal(found, torch.where((lacks[:, None] | lacks) & ~same_sample, 0.0, ignoring))


def test_a_dropped_scan_is_never_a_neighbour() -> None:
    collection = two_without_age()
    columns: dict[str, Any] = {"age": 500.0, "sex": "equal"}
    drawn = {
        on_missing: {
            int(s)
            for s in TabularNeighbours(columns=columns, k=4, on_missing=on_missing).neighbours(collection, 4)[
                0
            ]
        }  # type: ignore[arg-type]
        for on_missing in ("ignore", "drop")
    }
    assert 1 in drawn["ignore"] and drawn["drop"] == {2, 3, 5}


def test_equally_similar_patients_are_drawn_at_random() -> None:
    """Before, the first k of the table were the neighbours of all others."""
    collection = make_collection(0, 60).with_columns(
        {"sex": np.zeros(60), "modality": np.zeros(60, dtype=int)}
    )
    strategy = TabularNeighbours(columns={"sex": "equal"}, k=2)
    rng = np.random.default_rng(0)
    patient = collection.columns["patient"]
    drawn = [[patient[view.scan] for view in strategy.sample(collection, 0, rng)] for _ in range(400)]
    assert all(first == patient[0] != second for first, second in drawn)
    assert {second for _, second in drawn} == set(patient.tolist()) - {patient[0]}


def test_missing_labels_are_reported_or_left_out() -> None:
    collection = make_collection(0, 6).with_columns({"class": np.array([-1, 0, 0, 1, 1, -1])})
    kept = ClassLabels(group_size=1).anchors(collection)
    assert len(kept.ids) == 6 and "class is missing in 2 of 6 scans" in kept.notes[0]
    left = ClassLabels(group_size=1, on_missing="drop").anchors(collection)
    assert (
        left.ids.tolist() == [1, 2, 3, 4] and left.left_out == {"its class is missing": 2} and not left.notes
    )


def test_only_the_first_part_of_a_product_may_select_anchors() -> None:
    kernel = Choice("metadata_kernel", {"columns": {"age": 5.0}, "on_missing": "drop"})
    Product(parts=(kernel, Choice("augmented_views")))
    with pytest.raises(ConfigError, match="product: on_missing: drop selects anchors"):
        Product(parts=(Choice("augmented_views"), kernel))


REFUSED: list[tuple[Any, Callable[[Collection], Collection], str]] = [
    (
        MetadataKernel(columns={"height": 3.0}),
        lambda c: c,
        "metadata_kernel: the manifest has no column 'height'; choose from patient",
    ),
    (
        MetadataKernel(columns={"sex": 3.0}),
        lambda c: c,
        "the column 'sex' holds text, not numbers, so it has no bandwidth; write `sex: equal`",
    ),
    (
        MetadataKernel(columns={"age": 3.0}),
        lambda c: c.with_columns({"age": np.full(len(c), 40.0)}),
        "the column 'age' is the same in all 6 scans that have it",
    ),
    (
        TabularNeighbours(columns={"age": 3.0}, k=1),
        lambda c: c.with_columns({"age": np.full(len(c), np.nan)}),
        "tabular_neighbours: the column 'age' is empty",
    ),
    (
        TabularNeighbours(columns={"age": 3.0}, k=3),
        lambda c: c,
        "k = 3 other patients, but the collection has 2; lower k to 2 or less",
    ),
    (
        MetadataKernel(columns={"age": 3.0}, group_size=4),
        lambda c: c,
        "group_size = 4 patients, but the collection has 3; lower group_size to 3",
    ),
    (ClassLabels(column="diagnosis"), lambda c: c, "class_labels: the manifest has no column 'diagnosis'"),
    (
        ClassLabels(),
        lambda c: c.with_columns({"class": np.ones(len(c), dtype=np.int64)}),
        "the column 'class' is the same in all 6 scans",
    ),
    (
        ClassLabels(group_size=3),
        lambda c: c,
        "group_size = 3 patients of one class, but no value has more than 2; lower group_size to 2",
    ),
]


@pytest.mark.parametrize(("strategy", "change", "words"), REFUSED, ids=[words[:40] for *_, words in REFUSED])
def test_missing_data_is_an_error_before_training(
    strategy: Any, change: Callable[[Collection], Collection], words: str
) -> None:
    with pytest.raises(DataError, match=words.replace("(", r"\(")):
        strategy.anchors(change(make_collection(0, 6)))


@pytest.mark.parametrize(
    "strategy",
    [
        MetadataKernel(columns={"age": 5.0}),
        TabularNeighbours(columns={"age": 5.0}, k=2),
        ClassLabels(column="age"),
    ],
)
def test_placebos_permute_the_columns(strategy: Any) -> None:
    collection = make_collection(0, 20)
    shuffled = placebo(collection, strategy, 0)
    assert sorted(shuffled.columns["age"]) == sorted(collection.columns["age"])
    assert (shuffled.columns["age"] != collection.columns["age"]).mean() > 0.8
    assert np.array_equal(shuffled.columns["sex"], collection.columns["sex"])

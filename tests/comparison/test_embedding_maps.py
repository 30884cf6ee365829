"""Label-free scores and embedding maps of a comparison's encoders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medcl3d.comparison.analysis.embedding_maps import (
    EmbeddingMap,
    Spread,
    embedding_maps,
    scores,
    shown_columns,
    spreads,
)
from medcl3d.comparison.plan.runs import Run
from medcl3d.comparison.report.figures import COLOURS, feature_maps
from medcl3d.io.atomic import write_json
from medcl3d.pretraining.embedding_export import FEATURES, SCORES
from medcl3d.pretraining.pair_audit import PAIR_AUDIT
from tests.comparison.large_comparison import written

NAMES = ("a", "b", "c", "d")


def runs_of(folder: Path, rankme: dict[tuple[str, int], float]) -> list[Run]:
    runs = []
    for (name, seed), value in rankme.items():
        run = Run("pretrain", name, (), seed, Path("x.yaml"), (), folder / f"{name}_{seed}", None, {})
        run.folder.mkdir(parents=True)
        write_json(run.folder / SCORES, {"scores": {"alignment": 0.1, "uniformity": -2.0, "rankme": value}})
        runs.append(run)
    return runs


def test_scores_are_means_with_the_smallest_and_the_largest_replicate(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, {("a", seed): 2.0 + 5 * seed for seed in (0, 1, 2)})
    (shown,) = spreads(scores(runs)).values()
    assert shown["rankme"] == Spread(7.0, 2.0, 12.0), (
        "a t-interval would begin below 1, which RankMe cannot be"
    )
    assert "alpha_req" not in shown, "unknown scores are not averaged"
    (single,) = spreads({"a": {0: {"rankme": 3.0}}}).values()
    assert not single["rankme"].known


def test_an_encoder_without_scores_in_every_replicate_is_left_out(tmp_path: Path) -> None:
    runs = runs_of(
        tmp_path, {(name, seed): 1.0 * number for number, name in enumerate(NAMES) for seed in (0, 1)}
    )
    (runs[0].folder / SCORES).unlink()
    assert set(scores(runs)) == {"b", "c", "d"}


def test_an_encoder_with_undefined_features_is_shown_without_scores(tmp_path: Path) -> None:
    runs = runs_of(
        tmp_path, {(name, seed): 1.0 * number for number, name in enumerate(NAMES) for seed in (0, 1)}
    )
    write_json(runs[0].folder / SCORES, {"scores": {}})
    found = spreads(scores(runs))
    assert found["a"] == {} and set(found) == set(NAMES)


@pytest.mark.filterwarnings("error")
def test_a_collapsed_encoder_is_one_dot_and_one_with_undefined_features_has_no_map(tmp_path: Path) -> None:
    runs = [
        Run("pretrain", name, (), 0, Path("x.yaml"), (), tmp_path / name, None, {})
        for name in ("zero", "constant", "nan")
    ]
    for run, value in zip(runs, (0.0, 0.1, np.nan), strict=True):
        run.folder.mkdir()
        group = (np.arange(40) % 2).astype(str)
        np.savez(
            run.folder / FEATURES, features=np.full((40, 6), value, dtype=np.float32), scan=group, group=group
        )
    found = embedding_maps(runs)
    assert [one.encoder for one in found] == ["zero", "constant"]
    assert all((one.places == 0).all() for one in found)
    assert set(feature_maps(found)) == {"group"} and not feature_maps(embedding_maps(runs[2:]))


def shown(**known: list[str]) -> dict[str, np.ndarray]:
    count = len(next(iter(known.values())))
    return shown_columns(
        EmbeddingMap("e", np.zeros((count, 2)), {name: np.array(values) for name, values in known.items()})
    )


def test_maps_are_coloured_by_columns_that_differ() -> None:
    found = shown(age=[str(40 + i) for i in range(60)], sex=["F", "M", ""] * 20, site=["one"] * 60)
    assert set(found) == {"age", "sex"}
    assert found["age"].dtype.kind == "f" and set(found["sex"]) == {"F", "M", "none"}


def test_the_patients_with_the_most_crops_are_coloured() -> None:
    many = [f"p{i}" for i in range(9) for _ in range(5 + i)]
    found = shown(patient=[*many, "once", "twice", "twice"])["patient"]
    assert set(found) == {f"p{i}" for i in range(2, 9)} | {"other"}, "one name per colour"


def test_patients_with_few_crops_are_not_coloured() -> None:
    assert "patient" not in shown(patient=[f"p{i // 3}" for i in range(60)]), "three dots do not show a group"


def test_maps_have_one_picture_per_colouring_with_one_legend() -> None:
    known = {"patient": np.array(["a", "b"] * 20), "age": np.array([str(k) for k in range(40)])}
    places = np.random.default_rng(0).normal(size=(40, 2))
    pictures = feature_maps([EmbeddingMap(name, places, known) for name in ("one", "two", "three")])
    assert set(pictures) == {"patient", "age"}
    assert (
        pictures["patient"].light.count('id="legend_1"') == 1 and "legend_2" not in pictures["patient"].light
    )
    assert "coloured by patient, for one, two, three" in pictures["patient"].alt
    assert (
        COLOURS["light"][0].lower() in pictures["patient"].light
        and COLOURS["dark"][0].lower() in pictures["patient"].dark
    )


def test_crops_with_similar_features_are_close_on_a_map(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    group = np.arange(40) % 2
    features = rng.normal(size=(40, 6)) + 12 * group[:, None]
    run = Run("pretrain", "e", (), 0, Path("x.yaml"), (), tmp_path, None, {})
    np.savez(
        tmp_path / FEATURES,
        features=features.astype(np.float32),
        scan=np.array(["s"] * 40),
        group=group.astype(str),
    )
    (one,) = embedding_maps([run])
    distance = np.linalg.norm(one.places[:, None] - one.places, axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (group[distance.argmin(1)] == group).all() and set(one.known) == {"group"}


def test_the_report_shows_them(tmp_path: Path) -> None:
    report = written(tmp_path)
    text = report.read_text()
    assert "Scores of the frozen encoders, and of their pairs" in text and "four encoders or more" in text
    assert (report.parent / "figures" / "features_patient.svg").is_file() and "coloured by age" in text


def test_the_audit_of_the_pairs_is_among_the_scores(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, {("a", 0): 2.0, ("mae", 0): 3.0})
    audit = {"purity": {"mean": 0.5}, "false_negatives": None, "chance": {"mean": 0.1}}
    write_json(runs[0].folder / PAIR_AUDIT, audit)
    found = scores(runs)
    assert found["a"][0]["pair_purity"] == 0.5 and "pair_false_negatives" not in found["a"][0]
    assert "pair_purity" not in found["mae"][0]

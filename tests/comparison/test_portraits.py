"""What encoders say without labels, beside what came out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medcl3d.comparison.figures import feature_maps
from medcl3d.comparison.plan import Arm, CompareConfig, Recipe, Run
from medcl3d.comparison.portraits import Map, better, maps, scores, shown_columns
from medcl3d.data.atomic import write_json
from medcl3d.training.portrait import FEATURES, SCORES
from tests.comparison.large_comparison import written

NAMES = ("a", "b", "c", "d")


def grid(folder: Path, rankme: dict[tuple[str, int], float]) -> tuple[list[Run], CompareConfig]:
    runs = []
    for (name, seed), value in rankme.items():
        run = Run("pretrain", name, (), seed, Path("x.yaml"), (), folder / f"{name}_{seed}", None, {})
        run.folder.mkdir(parents=True)
        values = {"alignment": 0.1, "uniformity": -2.0, "rankme": value}
        write_json(run.folder / SCORES, {"scores": values})
        runs.append(run)
    arms = {"scratch": Arm(), **{f"arm {name}": Arm(pretraining=name) for name in NAMES}, "a, all": Arm("a", {"transfer": "all"})}
    return runs, CompareConfig(out_dir=Path("runs"), arms=arms, reference="scratch", finetune=Recipe(config=Path("f.yaml")))


def test_a_score_that_orders_encoders_as_the_outcome_does_agrees(tmp_path: Path) -> None:
    runs, config = grid(tmp_path, {(name, seed): 10.0 * number + seed for number, name in enumerate(NAMES) for seed in (0, 1, 2)})
    endpoint = {f"arm {name}": (0.1 * number, 0.2 * number, -0.1 * number) for number, name in enumerate(NAMES)}
    endpoint |= {"a, all": (9.0, 9.0, 9.0), "scratch": (0.0, 0.0, 0.0)}  # neither is the first arm of a pretraining
    found = scores(runs, config, endpoint, higher=True)
    agreement = found.agreement["rankme"]
    assert agreement is not None and agreement.mean == pytest.approx((1 + 1 - 1) / 3) and agreement.n == 3
    assert found.agreement["alignment"] is None, "a score that is the same of all orders nothing"
    assert found.agreement["alpha_req"] is None and "alpha_req" not in found.encoders["a"], "what is not known is not averaged"
    assert found.encoders["b"]["rankme"].mean == pytest.approx(11)
    other = scores(runs, config, endpoint, higher=False).agreement["rankme"]
    assert other is not None and other.mean == pytest.approx(-1 / 3)


def test_an_encoder_without_scores_in_every_replicate_is_left_out(tmp_path: Path) -> None:
    runs, config = grid(tmp_path, {(name, seed): 1.0 * number for number, name in enumerate(NAMES) for seed in (0, 1)})
    (runs[0].folder / SCORES).unlink()
    endpoint = {name: (0.0, 1.0) for name in config.arms}
    found = scores(runs, config, endpoint, higher=True)
    assert set(found.encoders) == {"b", "c", "d"} and not any(found.agreement.values()), "three encoders have no order to speak of"


def test_an_encoder_whose_features_are_no_numbers_is_shown_without_scores(tmp_path: Path) -> None:
    runs, config = grid(tmp_path, {(name, seed): 1.0 * number for number, name in enumerate((*NAMES, "e")) for seed in (0, 1)})
    config = CompareConfig(**{**config.__dict__, "arms": {**config.arms, "arm e": Arm("e")}})
    write_json(runs[0].folder / SCORES, {"scores": {}})
    found = scores(runs, config, {name: (0.1 * number, 0.2 * number) for number, name in enumerate(config.arms)}, higher=True)
    assert found.encoders["a"] == {} and set(found.encoders) == {*NAMES, "e"}
    agreement = found.agreement["rankme"]
    assert agreement is not None and agreement.mean == pytest.approx(1), "of the four others"


@pytest.mark.filterwarnings("error")
def test_a_collapsed_encoder_is_one_dot_and_one_without_numbers_has_no_map(tmp_path: Path) -> None:
    runs = [Run("pretrain", name, (), 0, Path("x.yaml"), (), tmp_path / name, None, {}) for name in ("zero", "constant", "nan")]
    for run, value in zip(runs, (0.0, 0.1, np.nan), strict=True):
        run.folder.mkdir()
        group = (np.arange(40) % 2).astype(str)
        np.savez(run.folder / FEATURES, features=np.full((40, 6), value, dtype=np.float32), scan=group, group=group)
    found = maps(runs)
    assert [one.encoder for one in found] == ["zero", "constant"]
    assert all((one.places == 0).all() for one in found)
    assert feature_maps(found) is not None and feature_maps(maps(runs[2:])) is None


@pytest.mark.parametrize(
    ("score", "good", "bad"), [("alignment", 0.1, 0.2), ("uniformity", -3, -2), ("rankme", 9, 8), ("alpha_req", 1.1, 0.7)]
)
def test_larger_is_better_once_turned(score: str, good: float, bad: float) -> None:
    assert better(score, good) > better(score, bad)


def test_maps_are_coloured_by_what_differs() -> None:
    known = {
        "patient": np.array([f"p{i % 20}" for i in range(60)]),
        "age": np.array([str(40 + i) for i in range(60)]),
        "sex": np.array(["F", "M", ""] * 20),
        "site": np.array(["one"] * 60),
    }
    shown = shown_columns(Map("e", np.zeros((60, 2)), known))
    assert set(shown) == {"patient", "age", "sex"}
    assert shown["age"].dtype.kind == "f" and len(set(shown["patient"]) - {"other"}) == 8 and set(shown["sex"]) == {"F", "M", "other"}


def test_near_crops_lie_near_on_a_map(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    group = np.arange(40) % 2
    features = rng.normal(size=(40, 6)) + 12 * group[:, None]
    run = Run("pretrain", "e", (), 0, Path("x.yaml"), (), tmp_path, None, {})
    np.savez(tmp_path / FEATURES, features=features.astype(np.float32), scan=np.array(["s"] * 40), group=group.astype(str))
    (one,) = maps([run])
    distance = np.linalg.norm(one.places[:, None] - one.places, axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (group[distance.argmin(1)] == group).all() and set(one.known) == {"group"}


def test_the_report_shows_them(tmp_path: Path) -> None:
    report = written(tmp_path)
    text = report.read_text()
    assert "What the frozen encoders say without labels" in text and "four encoders or more" in text
    assert (report.parent / "figures" / "features.svg").is_file() and "coloured by patient, age" in text

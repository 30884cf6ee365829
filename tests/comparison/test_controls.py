"""Controls are added to a comparison automatically, once each, and outside the tested family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medcl3d.comparison.plan.arm_types import arm_types_of
from medcl3d.comparison.plan.config import Arm, CompareConfig, Recipe
from medcl3d.comparison.plan.controls import num_views, with_controls
from medcl3d.comparison.plan.runs import plan
from medcl3d.config.loading import parse
from tests.pairs.collections import make_collection
from tests.pairs.test_strategies import STRATEGIES, build, fit_for

CONFIGS = Path(__file__).parents[2] / "configs"
DENSE = {"config": str(CONFIGS / "pretrain" / "hippocampus_dense.yaml")}
OVERLAP = {"config": str(CONFIGS / "pretrain" / "hippocampus_overlap.yaml")}


def comparison(**fields: Any) -> CompareConfig:
    content = {
        "out_dir": "runs",
        "pretrainings": {"dense": DENSE, "overlap": OVERLAP},
        "may_differ": ["train.lr"],
        "finetune": {"config": str(CONFIGS / "finetune" / "hippocampus.yaml")},
        "arms": {"dense": {"pretraining": "dense"}, "overlap": {"pretraining": "overlap"}},
        "reference": "scratch",
    }
    return with_controls(parse(content | fields, CompareConfig, "test"))


DEFAULT = [
    "scratch",
    "dense",
    "overlap",
    "augmented_views (dense)",
    "augmented_views (overlap)",
    "dense (placebo)",
    "mae",
]


def test_controls_are_added_by_default_and_are_not_tested() -> None:
    config = comparison()
    assert list(config.arms) == DEFAULT, "crops that overlap have no signal columns to permute"
    assert config.tested_arms == ("dense", "overlap")
    planned = {run.name: run.planned for run in plan(config) if run.command == "pretrain"}
    assert (
        planned["dense (placebo)"]["placebo"] is True
        and planned["dense (placebo)"]["pairs"] == planned["dense"]["pairs"]
    )
    assert (
        planned["mae"]["objective"]["mae"]["block"] == [8, 8, 8]
        and planned["mae"]["encoder"] == planned["dense"]["encoder"]
    )
    (of_placebo,) = [run for run in plan(config) if run.measures and run.name == "dense (placebo)"]
    assert of_placebo.needs is not None and of_placebo.needs.parts[-2] == "dense_placebo"


def test_foreign_weights_are_compared_with_their_encoder_from_scratch() -> None:
    foreign = {"weights": "a.pth", "layout": "anatomix", "saw": "none"}
    own = {"init": foreign, "set": {"encoder": "whole_unet3d"}}
    arms = {"ours": {"pretraining": "dense"}, "theirs": own, "same": {"init": foreign}}
    config = comparison(arms=arms, controls=["scratch"])
    assert list(config.arms) == ["scratch", "scratch (theirs)", "ours", "theirs", "same"]
    assert config.tested_arms == ("ours", "theirs", "same")
    assert config.arms["scratch (theirs)"] == Arm(set={"encoder": "whole_unet3d"})
    written = {**arms, "scratch": {}, "net": {"set": {"encoder": "whole_unet3d"}}}
    assert list(comparison(arms=written, controls=["scratch"]).arms) == list(written)


def test_augmented_views_differ_from_the_compared_arms_in_their_pairs_alone() -> None:
    config = comparison()
    planned = {run.name: run.planned for run in plan(config) if run.command == "pretrain"}
    for control, arm in (("augmented_views (dense)", "dense"), ("augmented_views (overlap)", "overlap")):
        own = {"pairs", "out_dir"}
        assert planned[control]["pairs"] == {
            "augmented_views": {"num_views": 2, "resized_crop": False, "min_volume": 0.3}
        }
        points = {"dense": {"ignore_mm": 4.0}}.get(arm, {})  # of its pairs, since these relate points
        ((objective, fields),) = planned[arm]["objective"].items()
        expected = planned[arm] | {"objective": {objective: fields | points}}
        assert {k: v for k, v in planned[control].items() if k not in own} == {
            k: v for k, v in expected.items() if k not in own
        }
    assert arm_types_of(plan(config), config) == dict(
        zip(DEFAULT, ["scratch", "pairs", "pairs", "augmented", "augmented", "placebo", "mae"], strict=True)
    )
    arm = config.arms["augmented_views (dense)"]
    assert arm.pretraining == "augmented_views (dense)" and arm.set == config.arms["dense"].set


THREE = {"overlapping_crops": {"num_views": 3}}


@pytest.mark.parametrize(
    "pairs", [THREE, {"hard_negatives": {"inner": THREE}}, {"product": {"parts": [THREE, "same_patient"]}}]
)
def test_augmented_views_have_as_many_views_as_the_compared_arm(pairs: dict[str, Any]) -> None:
    three = {**OVERLAP, "set": {"pairs": pairs}}
    config = comparison(
        pretrainings={"three": three}, arms={"three": {"pretraining": "three"}}, controls=["augmented_views"]
    )
    assert config.pretrainings["augmented_views"].set["pairs"] == {"augmented_views": {"num_views": 3}}


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_number_of_views_is_that_of_a_sample(name: str) -> None:
    strategy, collection = build(name), fit_for(name, make_collection(0, 12))
    views = strategy.sample(collection, int(strategy.anchors(collection).ids[0]), np.random.default_rng(0))
    assert num_views(strategy) == sum(view.role == "global" for view in views)


def test_augmented_views_have_as_many_points_as_the_compared_arm() -> None:
    """A strategy that relates points sets their number; with augmented views the objective does."""
    points = {**DENSE, "set": {"pairs": {"voxel_correspondence": {"num_points": 64, "ignore_mm": 9.0}}}}
    arms = {"points": {"pretraining": "points"}}
    config = comparison(pretrainings={"points": points}, arms=arms, controls=["scratch", "augmented_views"])
    objective = {run.name: run.planned["objective"]["dense"] for run in plan(config) if not run.measures}
    assert objective["augmented_views"] == objective["points"] | {"num_points": 64, "ignore_mm": 9.0}


def test_local_crops_are_left_out_of_the_control() -> None:
    dino = {**OVERLAP, "set": {"pairs": {"multi_crop": {"num_local": 6}}, "objective": {"dino": {}}}}
    config = comparison(
        pretrainings={"dino": dino}, arms={"dino": {"pretraining": "dino"}}, controls=["augmented_views"]
    )
    assert config.pretrainings["augmented_views"].set["pairs"] == {"augmented_views": {}}


def test_arms_that_train_in_five_ways_have_five_controls() -> None:
    rates = [1e-3, 2e-3, 3e-3, 4e-3, 5e-3]
    pretrainings = {f"at {rate}": {**OVERLAP, "set": {"train.lr": rate}} for rate in rates}
    arms = {name: {"pretraining": name} for name in pretrainings}
    config = comparison(pretrainings=pretrainings, arms=arms, controls=["scratch", "augmented_views"])
    planned = {run.name: run.planned["train"]["lr"] for run in plan(config) if not run.measures}
    assert planned == {f"at {rate}": rate for rate in rates} | {
        f"augmented_views (at {rate})": rate for rate in rates
    }


def test_an_unused_pretraining_is_not_a_control() -> None:
    unused = {
        "views": {**OVERLAP, "set": {"pairs": {"augmented_views": {}}}},
        "shuffled": {**DENSE, "set": {"placebo": True}},
    }
    mae = {"painted": {"config": str(CONFIGS / "pretrain" / "hippocampus_mae.yaml")}}
    assert (
        list(comparison(pretrainings={**mae, **unused, "dense": DENSE, "overlap": OVERLAP}).arms) == DEFAULT
    )


def test_fields_below_the_replaced_pairs_go_with_them() -> None:
    """`pairs.overlapping_crops.min_iou` would select a second strategy."""
    fields = {"pairs": {"overlapping_crops": {}}, "pairs.overlapping_crops.min_iou": 0.3}
    fields |= {"objective": "simclr", "objective.simclr.temperature": 0.2}
    own = {"own": {**OVERLAP, "set": fields}}
    config = comparison(pretrainings=own, arms={"own": {"pretraining": "own"}})
    planned = {run.name: run.planned for run in plan(config) if not run.measures}
    assert planned["augmented_views"]["objective"]["simclr"]["temperature"] == 0.2
    assert planned["mae"]["pairs"]["overlapping_crops"]["min_iou"] == 0.3 and list(
        planned["mae"]["objective"]
    ) == ["mae"]


@pytest.mark.parametrize("wrapper", ["hard_negatives", "nearest_neighbours"])
def test_mae_draws_by_the_inner_strategy_of_one_that_needs_embeddings(wrapper: str) -> None:
    """MAE provides no embeddings, and such a strategy with MAE is refused before training."""
    own = {"own": {**OVERLAP, "set": {"pairs": {wrapper: {"inner": THREE}}}}}
    config = comparison(pretrainings=own, arms={"own": {"pretraining": "own"}}, controls=["scratch", "mae"])
    (mae,) = [run.planned for run in plan(config) if run.name == "mae" and not run.measures]
    assert list(mae["pairs"]) == ["overlapping_crops"] and mae["pairs"]["overlapping_crops"]["num_views"] == 3


def test_augmented_views_are_not_added_if_they_are_an_arm() -> None:
    views = {**OVERLAP, "set": {"pairs": {"augmented_views": {}}}}
    arms = {"views": {"pretraining": "views"}, "overlap": {"pretraining": "overlap"}}
    fields = {"pretrainings": {"views": views, "overlap": OVERLAP}, "arms": arms, "reference": "overlap"}
    config = comparison(**fields, controls=["augmented_views"])
    assert (
        list(config.arms) == ["views", "overlap"]
        and arm_types_of(plan(config), config)["views"] == "augmented"
    )


def test_existing_controls_are_not_added_again() -> None:
    mae = {"config": str(CONFIGS / "pretrain" / "hippocampus_mae.yaml")}
    config = comparison(
        controls=["scratch", "placebo", "mae"],
        pretrainings={"dense": DENSE, "shuffled": {**DENSE, "set": {"placebo": True}}, "painted": mae},
        arms={
            "from nothing": {},
            "dense": {"pretraining": "dense"},
            "control": {"pretraining": "shuffled"},
            "m": {"pretraining": "painted"},
        },
        reference="from nothing",
    )
    assert list(config.arms) == ["from nothing", "dense", "control", "m"]
    assert with_controls(config) == config


def test_arms_of_one_pretraining_share_a_placebo() -> None:
    arms = {"encoder": {"pretraining": "dense"}, "all": {"pretraining": "dense", "set": {"transfer": "all"}}}
    config = comparison(pretrainings={"dense": DENSE}, arms=arms)
    assert config.arms["encoder (placebo)"] == Arm("dense (placebo)") and "all (placebo)" not in config.arms


@pytest.mark.parametrize(
    ("controls", "added"),
    [
        ([], []),
        (["scratch"], ["scratch"]),
        (["mae"], ["mae"]),
        (["placebo"], ["dense (placebo)"]),
        (["augmented_views"], ["augmented_views (dense)", "augmented_views (overlap)"]),
    ],
)
def test_controls_are_chosen(controls: list[str], added: list[str]) -> None:
    config = comparison(controls=controls, family=["dense"])
    assert set(config.arms) - {"dense", "overlap"} == set(added) and config.family == ("dense",)


def test_blocks_fit_the_patch() -> None:
    config = comparison(pretrain={"data.patch_size": [28, 32, 30]})
    assert config.pretrainings["mae"] == Recipe(
        Path(DENSE["config"]), {"objective": {"mae": {"block": [4, 8, 2]}}}
    )

"""Control arms of a comparison of pairs: scratch, augmented views, the placebo of each strategy, and MAE."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import replace
from typing import Any

from medcl3d.comparison.plan.cells import dotted
from medcl3d.comparison.plan.config import Arm, CompareConfig, Recipe
from medcl3d.comparison.plan.runs import model_of
from medcl3d.config.loading import load
from medcl3d.config.packaged import find_config
from medcl3d.config.plain import plain
from medcl3d.objectives import objective_type
from medcl3d.pairs import PAIRS, PairStrategy, all_parts, parts_of, relates_points, traits_of

AUGMENTED = "augmented_views"
POINTS = ("num_points", "tolerance_mm", "ignore_mm")
BLOCKS = (8, 4, 2, 1)
"""Edges of masked blocks, in voxels; the largest that divides the patch size is used."""


def with_controls(config: CompareConfig) -> CompareConfig:
    """The comparison with the controls that its `controls` field lists and that it does not have yet.

    They are outside the tested family, unless `family` names them; its default is the arms written in the
    file.
    """
    more = _augmented(config) if "augmented_views" in config.controls else {}
    more |= _placebos(config) if "placebo" in config.controls else {}
    more |= _mae(config) if "mae" in config.controls else {}
    pretrainings = config.pretrainings | {name: recipe for name, (recipe, _) in more.items()}
    arms = dict(config.arms)
    if "scratch" in config.controls:
        arms = _scratch(arms) | arms
    arms |= {_unused(arm_name, arms): arm for name, (_, (arm_name, arm)) in more.items()}
    return replace(config, arms=arms, pretrainings=pretrainings, family=config.tested_arms)


def _scratch(arms: dict[str, Arm]) -> dict[str, Arm]:
    """An arm from scratch, and one for each foreign arm with fields of its own, such as its encoder."""
    own = [arm.set for arm in arms.values() if arm.pretraining is None and arm.init is None]
    found = {} if own else {"scratch": Arm()}
    own = own or [{}]
    for name, arm in arms.items():
        if arm.init is not None and arm.set not in own:
            own.append(arm.set)
            found[_unused(f"scratch ({name})", arms)] = Arm(set=arm.set)
    return found


Controls = dict[str, tuple[Recipe, tuple[str, Arm]]]
"""Pretraining -> its recipe, and the name of its arm and the arm."""


def _augmented(config: CompareConfig) -> Controls:
    """Pretrainings with augmentations of one crop, one for each way in which the others train.

    Such an arm is trained like the others but chooses no pairs, so its difference to them is the effect of
    the choice. If there are several ways, each control is named after the first arm that trains that way.
    """
    planned = _used(config)
    augmented = [fields for fields in planned.values() if fields.pairs.name == AUGMENTED]
    have = [_rest(fields) for fields in augmented if not fields.placebo]
    needed: list[tuple[str, Arm, str, Recipe]] = []
    for arm_name, arm, pretraining, fields in _with_pairs(config, planned):
        if (rest := _rest(fields)) not in have:
            have.append(rest)
            recipe = _with_augmented(config.pretrainings[pretraining], fields)
            needed.append((arm_name, arm, pretraining, recipe))
    found: Controls = {}
    for arm_name, arm, pretraining, recipe in needed:
        of_pretraining, of_arm = (f"{AUGMENTED} ({pretraining})", f"{AUGMENTED} ({arm_name})")
        if len(needed) == 1:
            of_pretraining = of_arm = AUGMENTED
        name = _unused(of_pretraining, config.pretrainings)
        found[name] = (recipe, (of_arm, replace(arm, pretraining=name)))
    return found


def _with_pairs(config: CompareConfig, planned: dict[str, Any]) -> Iterator[tuple[str, Arm, str, Any]]:
    """Arms whose pretraining chooses pairs and is not a placebo, with its name and configuration."""
    for arm_name, arm in config.arms.items():
        if arm.pretraining in planned:
            fields = planned[arm.pretraining]
            if not fields.placebo and _takes_pairs(fields):
                yield arm_name, arm, arm.pretraining, fields


def _with_augmented(recipe: Recipe, fields: Any) -> Recipe:
    """The recipe with augmented views instead of its pairs: as many views and points per sample."""
    views, points = num_views(_strategy(fields)), _points(fields)
    recipe = _replaced(recipe, "pairs", {AUGMENTED: {} if views == 2 else {"num_views": views}})
    if not points:
        return recipe
    return _replaced(recipe, "objective", {fields.objective.name: {**fields.objective.fields, **points}})


def _replaced(recipe: Recipe, key: str, value: Any) -> Recipe:
    """The recipe with another choice of `key`, without the fields that were set in the previous choice."""
    kept = {name: of for name, of in recipe.set.items() if name != key and not name.startswith(f"{key}.")}
    return replace(recipe, set={**kept, key: value})


def _strategy(fields: Any) -> PairStrategy:
    strategy: PairStrategy = PAIRS.build(fields.pairs)
    return strategy


def num_views(strategy: PairStrategy) -> int:
    """Global views in a sample: `num_views` of the part that draws them, two if it has no such field."""
    parts = parts_of(strategy)
    return int(getattr(strategy, "num_views", 2)) if not parts else num_views(parts[0])


def _points(fields: Any) -> dict[str, Any]:
    """Point fields of a strategy that relates points, if they differ from those of the objective."""
    strategy = _strategy(fields)
    own: dict[str, Any] = {}
    for part in reversed(all_parts(strategy)) if relates_points(strategy) else ():
        own |= {key: value for key in POINTS if (value := getattr(part, key, None)) is not None}
    return {key: value for key, value in own.items() if fields.objective.fields.get(key, value) != value}


def _takes_pairs(fields: Any) -> bool:
    """Whether the objective uses pairs (MAE does not)."""
    return bool(objective_type(fields.objective.name).uses)


def _rest(fields: Any) -> dict[str, Any]:
    """A pretraining's configuration without its pairs, with the number of views and points per sample."""
    rest = {key: value for key, value in _task(fields).items() if key != "pairs"}
    objective = {fields.objective.name: {**fields.objective.fields, **_points(fields)}}
    return rest | {"objective": objective, "num_views": num_views(_strategy(fields))}


def _placebos(config: CompareConfig) -> Controls:
    """A placebo for every strategy with signal columns that has none in the comparison."""
    planned = _used(config)
    have = [_task(fields) for fields in planned.values() if fields.placebo]
    found: Controls = {}
    for arm_name, arm, pretraining, fields in _with_pairs(config, planned):
        if _task(fields) in have or not traits_of(_strategy(fields)).signal_columns:
            continue
        have.append(_task(fields))
        recipe = config.pretrainings[pretraining]
        recipe = replace(recipe, set={**recipe.set, "placebo": True})
        name = _unused(f"{pretraining} (placebo)", config.pretrainings)
        found[name] = (recipe, (f"{arm_name} (placebo)", replace(arm, pretraining=name)))
    return found


def _mae(config: CompareConfig) -> Controls:
    """MAE with crops, network and steps of the first pretraining; empty if the comparison has one."""
    used = _used(config)
    if not used or any(fields.objective.name == "mae" for fields in used.values()):
        return {}
    name, fields = next(iter(used.items()))
    first, sizes = config.pretrainings[name], fields.data.patch_size
    if (pairs := _without_features(plain(fields)["pairs"])) != plain(fields)["pairs"]:
        first = _replaced(first, "pairs", pairs)
    block = [next(edge for edge in BLOCKS if size % edge == 0) for size in sizes]
    name = _unused("mae", config.pretrainings)
    return {name: (_replaced(first, "objective", {"mae": {"block": block}}), ("mae", Arm(name)))}


def _without_features(pairs: dict[str, Any]) -> dict[str, Any]:
    """The inner strategy without wrappers that need embeddings, which MAE does not provide."""
    ((_, fields),) = pairs.items()
    return _without_features(fields["inner"]) if {"queue_size", "temperature"} & set(fields) else pairs


def _used(config: CompareConfig) -> dict[str, Any]:
    """Pretraining -> its configuration, for pretrainings that an arm uses."""
    started = {arm.pretraining for arm in config.arms.values()}
    used = {name: recipe for name, recipe in config.pretrainings.items() if name in started}
    model, common = model_of("pretrain"), dotted(config.pretrain)
    return {
        name: load(find_config(str(recipe.config)), common | dotted(recipe.set), model)
        for name, recipe in used.items()
    }


def _task(fields: Any) -> dict[str, Any]:
    """A pretraining's configuration without placebo, out_dir and seed."""
    return {key: value for key, value in plain(fields).items() if key not in ("placebo", "out_dir", "seed")}


def _unused(name: str, taken: Container[str]) -> str:
    return name if name not in taken else f"{name} (control)"

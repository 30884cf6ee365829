"""Control arms of a comparison of pairs: scratch, augmented views, the placebo of each strategy, and MAE."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from medcl3d.comparison.plan.config import Arm, CompareConfig, Recipe
from medcl3d.comparison.plan.runs import dotted, model_of
from medcl3d.config.loading import load
from medcl3d.config.packaged import find_config
from medcl3d.config.plain import plain

if TYPE_CHECKING:
    from medcl3d.pairs import PairStrategy

AUGMENTED = "augmented_views"
POINTS = ("num_points", "tolerance_mm", "ignore_mm")
BLOCKS = (8, 4, 2, 1)
"""Edges of masked blocks, in voxels; the largest that divides the patch size is used."""


def with_controls(config: CompareConfig) -> CompareConfig:
    """The comparison with the controls that its `controls` field lists and that it does not have yet.

    They are outside the tested family, unless `family` names them; its default is the arms written in the
    file.
    """
    family = config.family or tuple(name for name in config.arms if name != config.reference)
    more = _augmented(config) if "augmented_views" in config.controls else {}
    more |= _placebos(config) if "placebo" in config.controls else {}
    more |= _mae(config) if "mae" in config.controls else {}
    pretrainings = config.pretrainings | {name: recipe for name, (recipe, _) in more.items()}
    arms = dict(config.arms)
    if "scratch" in config.controls and all(arm.pretraining is not None for arm in arms.values()):
        arms = {"scratch": Arm(), **arms}
    arms |= {_unused(arm_name, arms): arm for name, (_, (arm_name, arm)) in more.items()}
    return replace(config, arms=arms, pretrainings=pretrainings, family=family)


Controls = dict[str, tuple[Recipe, tuple[str, Arm]]]
"""Pretraining -> its recipe, and the name of its arm and the arm."""


def _augmented(config: CompareConfig) -> Controls:
    """Pretrainings with augmentations of one crop, all else equal; one for each way in which the others
    train.

    Such an arm is trained like the others but chooses no pairs, so its difference to them is the effect of
    the choice.
    If there are several ways, each control is named after the first arm that trains that way.
    """
    planned = _used(config)
    have = [
        _rest(fields) for fields in planned.values() if fields.pairs.name == AUGMENTED and not fields.placebo
    ]
    needed: list[tuple[str, Arm, str, Recipe]] = []
    for arm_name, arm in config.arms.items():
        fields = planned.get(arm.pretraining or "")
        if (
            fields is None
            or arm.pretraining is None
            or fields.placebo
            or not _takes_pairs(fields)
            or _rest(fields) in have
        ):
            continue
        have.append(_rest(fields))
        needed.append(
            (arm_name, arm, arm.pretraining, _with_augmented(config.pretrainings[arm.pretraining], fields))
        )
    found: Controls = {}
    for arm_name, arm, pretraining, recipe in needed:
        label, of_arm = (
            (AUGMENTED, AUGMENTED)
            if len(needed) == 1
            else (f"{AUGMENTED} ({pretraining})", f"{AUGMENTED} ({arm_name})")
        )
        name = _unused(label, config.pretrainings)
        found[name] = (recipe, (of_arm, replace(arm, pretraining=name)))
    return found


def _with_augmented(recipe: Recipe, fields: Any) -> Recipe:
    """The recipe with augmented views instead of its pairs: as many views and points per sample."""
    views, points = _num_views(_strategy(fields)), _points(fields)
    recipe = _replaced(recipe, "pairs", {AUGMENTED: {} if views == 2 else {"num_views": views}})
    return (
        _replaced(recipe, "objective", {fields.objective.name: {**fields.objective.fields, **points}})
        if points
        else recipe
    )


def _replaced(recipe: Recipe, key: str, value: Any) -> Recipe:
    """The recipe with another choice of `key`; fields set below `key` belong to the previous choice and are
    removed.
    """
    kept = {name: of for name, of in recipe.set.items() if name != key and not name.startswith(f"{key}.")}
    return replace(recipe, set={**kept, key: value})


def _strategy(fields: Any) -> PairStrategy:
    from medcl3d.pairs import PAIRS

    strategy: PairStrategy = PAIRS.build(fields.pairs)
    return strategy


def _num_views(strategy: PairStrategy) -> int:
    """Global views in a sample: `num_views` of the part that draws them, two if it has no such field."""
    from medcl3d.pairs import parts_of

    parts = parts_of(strategy)
    return int(getattr(strategy, "num_views", 2)) if not parts else _num_views(parts[0])


def _points(fields: Any) -> dict[str, Any]:
    """Point fields of a strategy that relates points, as fields of the objective (which has defaults of its
    own).
    """
    from medcl3d.pairs import all_parts, relates_points

    strategy = _strategy(fields)
    own = {
        key: value
        for part in reversed(all_parts(strategy))
        for key in POINTS
        if (value := getattr(part, key, None)) is not None
    }
    changed = {key: value for key, value in own.items() if fields.objective.fields.get(key, value) != value}
    return changed if relates_points(strategy) else {}


def _takes_pairs(fields: Any) -> bool:
    """Whether the objective uses pairs (MAE does not)."""
    from medcl3d.objectives import objective_type

    return bool(objective_type(fields.objective.name).uses)


def _rest(fields: Any) -> dict[str, Any]:
    """A pretraining's configuration without its pairs, with the number of views and points per sample."""
    rest = {key: value for key, value in _task(fields).items() if key != "pairs"}
    objective = {fields.objective.name: {**fields.objective.fields, **_points(fields)}}
    return rest | {"objective": objective, "num_views": _num_views(_strategy(fields))}


def _placebos(config: CompareConfig) -> Controls:
    """A placebo for every strategy with signal columns that has none in the comparison."""
    from medcl3d.pairs import traits_of

    planned = _used(config)
    have = [_task(fields) for fields in planned.values() if fields.placebo]
    found: Controls = {}
    for arm_name, arm in config.arms.items():
        fields = planned.get(arm.pretraining or "")
        if fields is None or arm.pretraining is None or fields.placebo or _task(fields) in have:
            continue
        signal_columns = traits_of(_strategy(fields)).signal_columns
        if signal_columns and _takes_pairs(fields):
            have.append(_task(fields))
            recipe, name = (
                config.pretrainings[arm.pretraining],
                _unused(f"{arm.pretraining} (placebo)", config.pretrainings),
            )
            control = replace(arm, pretraining=name)
            found[name] = (
                replace(recipe, set={**recipe.set, "placebo": True}),
                (f"{arm_name} (placebo)", control),
            )
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
    return {name: _planned(config, recipe) for name, recipe in config.pretrainings.items() if name in started}


def _planned(config: CompareConfig, recipe: Recipe) -> Any:
    return load(
        find_config(str(recipe.config)), dotted(config.pretrain) | dotted(recipe.set), model_of("pretrain")
    )


def _task(fields: Any) -> dict[str, Any]:
    """A pretraining's configuration without placebo, out_dir and seed."""
    return {key: value for key, value in plain(fields).items() if key not in ("placebo", "out_dir", "seed")}


def _unused(name: str, taken: Container[str]) -> str:
    return name if name not in taken else f"{name} (control)"

"""Control arms of a comparison of pairs: scratch, augmented views, the placebo of each strategy, and MAE."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from typing import Any

from medcl3d.comparison.config import Arm, CompareConfig, Recipe
from medcl3d.comparison.plan import as_overrides, dotted, model_of
from medcl3d.config import load, plain
from medcl3d.packaged_configs import find_config

AUGMENTED = "augmented_views"
BLOCKS = (8, 4, 2, 1)
"""Edges of hidden blocks, in voxels: the largest that divides a patch is taken."""


def with_controls(config: CompareConfig) -> CompareConfig:
    """The comparison with the controls that it asks for and does not yet have.

    They are outside the tested family, unless that names them; where none is declared, it is the arms that were written down.
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
    """Pretrainings with two augmentations of one crop, all else equal; one for each way in which the others train.

    Such an arm is trained like the others but chooses no pairs, so its difference to them is what the choice adds.
    """
    planned = {name: _planned(config, recipe) for name, recipe in config.pretrainings.items()}
    have = [_rest(fields) for fields in planned.values() if fields.pairs.name == AUGMENTED and not fields.placebo]
    found: Controls = {}
    for arm in config.arms.values():
        fields = planned.get(arm.pretraining or "")
        if fields is None or arm.pretraining is None or fields.placebo or not _takes_pairs(fields) or _rest(fields) in have:
            continue
        have.append(_rest(fields))
        views = fields.pairs.fields.get("num_views")
        recipe = config.pretrainings[arm.pretraining]
        pairs = {AUGMENTED: {} if views in (None, 2) else {"num_views": views}}
        label = AUGMENTED if not found else f"{AUGMENTED} ({fields.objective.name})"
        name = _unused(label, config.pretrainings | {name: recipe for name in found})
        taken = {arm_name for _, (arm_name, _) in found.values()} | set(config.arms)
        found[name] = (replace(recipe, set={**recipe.set, "pairs": pairs}), (_unused(label, taken), replace(arm, pretraining=name)))
    return found


def _takes_pairs(fields: Any) -> bool:
    """The objective uses the relation of pairs (MAE does not)."""
    from medcl3d.objectives import OBJECTIVES

    return bool(OBJECTIVES.get(fields.objective.name).uses)  # type: ignore[attr-defined]


def _rest(fields: Any) -> dict[str, Any]:
    """A pretraining's configuration without its pairs, and with the number of views of a sample."""
    return {key: value for key, value in _task(fields).items() if key != "pairs"} | {"num_views": fields.pairs.fields.get("num_views") or 2}


def _placebos(config: CompareConfig) -> Controls:
    """Of every strategy that knows something of the scans, where the comparison has none for it."""
    from medcl3d.pairs import PAIRS

    planned = {name: _planned(config, recipe) for name, recipe in config.pretrainings.items()}
    have = [_task(fields) for fields in planned.values() if fields.placebo]
    found: Controls = {}
    for arm_name, arm in config.arms.items():
        fields = planned.get(arm.pretraining or "")
        if fields is None or arm.pretraining is None or fields.placebo or _task(fields) in have:
            continue
        signal_columns = getattr(PAIRS.build(fields.pairs), "informative", ())
        if signal_columns and _takes_pairs(fields):
            have.append(_task(fields))
            recipe, name = config.pretrainings[arm.pretraining], _unused(f"{arm.pretraining} (placebo)", config.pretrainings)
            control = replace(arm, pretraining=name)
            found[name] = (replace(recipe, set={**recipe.set, "placebo": True}), (f"{arm_name} (placebo)", control))
    return found


def _mae(config: CompareConfig) -> Controls:
    """Hidden blocks painted in, with crops, network and steps of the first pretraining; none where there is one already."""
    if not config.pretrainings or any(_planned(config, recipe).objective.name == "mae" for recipe in config.pretrainings.values()):
        return {}
    first = next(iter(config.pretrainings.values()))
    sizes = _planned(config, first).data.patch_size
    block = [next(edge for edge in BLOCKS if size % edge == 0) for size in sizes]
    name = _unused("mae", config.pretrainings)
    return {name: (replace(first, set={**first.set, "objective": {"mae": {"block": block}}}), ("mae", Arm(name)))}


def _planned(config: CompareConfig, recipe: Recipe) -> Any:
    return load(find_config(str(recipe.config)), as_overrides(dotted(config.pretrain) | dotted(recipe.set)), model_of("pretrain"))


def _task(fields: Any) -> dict[str, Any]:
    """A pretraining's configuration, whether a placebo or not."""
    return {key: value for key, value in plain(fields).items() if key not in ("placebo", "out_dir", "seed")}


def _unused(name: str, taken: Container[str]) -> str:
    return name if name not in taken else f"{name} (control)"

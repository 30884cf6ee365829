"""The arms that a comparison of pairs is worth nothing without: from scratch, the strategy's placebo, and a task without pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from medcl3d.comparison.config import Arm, CompareConfig, Recipe
from medcl3d.comparison.plan import dotted, model_of
from medcl3d.config import load, plain
from medcl3d.packaged_configs import find_config

BLOCKS = (8, 4, 2, 1)
"""Edges of hidden blocks, in voxels: the largest that divides a patch is taken."""


def with_controls(config: CompareConfig) -> CompareConfig:
    """The comparison with the controls that it asks for and does not yet have.

    They are outside the tested family, unless that names them; where none is declared, it is the arms that were written down.
    """
    family = config.family or tuple(name for name in config.arms if name != config.reference)
    more = _placebos(config) if "placebo" in config.controls else {}
    more |= _mae(config) if "mae" in config.controls else {}
    pretrainings = config.pretrainings | {name: recipe for name, (recipe, _) in more.items()}
    arms = dict(config.arms)
    if "scratch" in config.controls and all(arm.pretraining is not None for arm in arms.values()):
        arms = {"scratch": Arm(), **arms}
    arms |= {_unused(arm_name, arms): arm for name, (_, (arm_name, arm)) in more.items()}
    return replace(config, arms=arms, pretrainings=pretrainings, family=family)


Controls = dict[str, tuple[Recipe, tuple[str, Arm]]]
"""Pretraining -> its recipe, and the name of its arm and the arm."""


def _placebos(config: CompareConfig) -> Controls:
    """Of every strategy that knows something of the scans, where the comparison has none for it."""
    from medcl3d.objectives import OBJECTIVES
    from medcl3d.pairs import PAIRS

    planned = {name: _planned(config, recipe) for name, recipe in config.pretrainings.items()}
    have = [_task(fields) for fields in planned.values() if fields.placebo]
    found: Controls = {}
    for arm_name, arm in config.arms.items():
        fields = planned.get(arm.pretraining or "")
        if fields is None or arm.pretraining is None or fields.placebo or _task(fields) in have:
            continue
        uses = OBJECTIVES.get(fields.objective.name).uses  # type: ignore[attr-defined]
        if uses and getattr(PAIRS.build(fields.pairs), "informative", ()):
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
    return load(find_config(str(recipe.config)), dotted(config.pretrain) | dotted(recipe.set), model_of("pretrain"))


def _task(fields: Any) -> dict[str, Any]:
    """A pretraining's configuration, whether a placebo or not."""
    return {key: value for key, value in plain(fields).items() if key not in ("placebo", "out_dir", "seed")}


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    return name if name not in taken else f"{name} (control)"

"""What a store allows: usable strategies, patch size, measurements; and the comparison made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from medcl3d.comparison.suggest.measurements import LABEL_MAPS, Measurement, possible_measurements
from medcl3d.config.packaged import find_config
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.core.geometry import Triple
from medcl3d.pairs import all_parts, traits_of
from medcl3d.pairs.traits import region_traits_of
from medcl3d.pretraining.patch_size import patch_and_strides
from medcl3d.pretraining.usable_pairs import PairsOnStore, usable_pairs
from medcl3d.store.splits import read_split
from medcl3d.store.store import Store

EDGES = {"mine": 64, "mine_small": 32}
"""Size, a suffix of packaged configurations -> edge of a cubic patch in voxels."""
CHANNELS = {"mine": [16, 32, 64, 128], "mine_small": [8, 32, 64, 128]}
VIEWS: dict[str, Any] = {"ct": "ct", "none": "shape"}
"""Kind of intensities of a store -> view recipe; `mri` for any other. All without flips."""
BASELINE = "augmented_views"


@dataclass(frozen=True)
class Suggestion:
    """What the scans of a store allow.

    size          suffix of the packaged configurations: `mine` for a GPU, `mine_small` for a CPU
    common        fields of data and encoder that are set in all runs
    views         the field `views`, if it is not that of the packaged configurations
    pairs         every strategy but combinators
    measurements  those that can be assembled, those of most use first
    validation    whether the split has validation patients
    """

    store: Store
    size: str
    patch_size: Triple
    common: Mapping[str, Any]
    views: Mapping[str, Any]
    pairs: Sequence[PairsOnStore]
    measurements: Sequence[Measurement]
    validation: bool

    @property
    def usable(self) -> list[PairsOnStore]:
        """The strategies that the scans can train."""
        return [one for one in self.pairs if one.parts is not None]


def suggestion_for(root: Path, size: str | None = None) -> Suggestion:
    """The suggestion for a store. ConfigError for another size, DataError if the store cannot be opened.

    size: `mine` or `mine_small` (default: by whether there is a GPU)
    """
    if size is not None and size not in EDGES:
        raise ConfigError(problem="not a size", remedy=f"use {' or '.join(EDGES)}", place=f"--size {size}")
    store = Store.open(root)
    size = size or ("mine" if torch.cuda.is_available() else "mine_small")
    patch, strides = patch_and_strides(store.collection.shapes, store.collection.spacings, EDGES[size])
    data: dict[str, Any] = {"data.root": str(root), "data.patch_size": list(patch)}
    if strides != [1, 2, 2, 2]:
        data["encoder"] = {"unet3d": {"channels": CHANNELS[size], "strides": strides}}
    recipe = VIEWS.get(store.intensity()["kind"])
    views = {"views": {recipe: {"flip_probability": [0, 0, 0]}}} if recipe else {}
    pairs = usable_pairs(store, find_config(f"pretrain/{size}"), {**data, **views})
    split = read_split(root / "split.json", store.collection.table["patient"])
    measurements = possible_measurements(store, size, data)
    return Suggestion(store, size, patch, data, views, pairs, measurements, bool(split.validation))


def trains_on_target(one: PairsOnStore, measurement: Measurement) -> bool:
    """Whether a strategy uses the labels of all training patients, which the measurement predicts."""
    assert one.parts is not None
    if measurement.target == LABEL_MAPS:
        regions = region_traits_of(one.parts.strategy)
        return regions is not None and regions.supervoxel_mm is None
    return any(measurement.target in traits_of(part).signal_columns for part in all_parts(one.parts.strategy))


def comparison_of(suggestion: Suggestion, made_by: str) -> str:
    """The text of a comparison of the usable strategies, at the first measurement.

    made_by: the command, for its first line. DataError if nothing can be measured.
    """
    if not suggestion.measurements:
        raise DataError(
            suggestion.store.root,
            "nothing to compare encoders by: no label maps, no class or number column, and no test patient "
            "with a second scan",
            "prepare some scans with label maps, or add a column such as diagnosis or age to the manifest",
        )
    measurement = suggestion.measurements[0]
    arms = [one for one in suggestion.usable if not trains_on_target(one, measurement)]
    left_out = [one.name for one in suggestion.usable if one not in arms]
    command, size, common = measurement.command, suggestion.size, suggestion.common
    fields: dict[str, Any] = {**common, **measurement.fields}
    if len(measurement.vary) > 1:
        del fields["num_labelled"]  # varies
    fields |= suggestion.views if command == "finetune" else {}
    fields |= {"measured_on": "validation"} if suggestion.validation else {}
    lines = [
        f"# {made_by}",
        f"# A screening of the usable pair strategies by {command}: {measurement.words}. Nothing is tested.",
        "# Keep the best two or three arms, remove `stage` and `measured_on`, set `first_seed: 2` and",
        "# `replicates: 10`, and run that comparison as a confirmation.",
        *([] if suggestion.validation else [NO_VALIDATION]),
        f"out_dir: runs/suggested_{suggestion.store.root.resolve().name}",
        "stage: screen",
        "pretrain:",
        *_block({**common, **suggestion.views}),
        "pretrainings:",
        *(
            f"  {one.name}: {{config: configs/pretrain/{size}.yaml, set: {_flow(one.fields)}}}"
            for one in arms
        ),
        "may_differ: [train.lr]           # points and crops learn best at different rates",
        *([f"# left out, since they train on what is measured: {', '.join(left_out)}"] if left_out else []),
        f"{command}:",
        f"  config: configs/{command}/{size}.yaml",
        "  set:",
        *_block(fields, "    "),
        "arms:",
        *(f"  {one.name}: {{pretraining: {one.name}}}" for one in arms),
        *([f"vary: {{num_labelled: {list(measurement.vary)}}}"] if len(measurement.vary) > 1 else []),
        f"metric: {measurement.metric}",
        f"reference: {BASELINE}       # trains without a choice of pairs; controls are added automatically",
        "replicates: 2",
    ]
    return "\n".join([*lines, ""])


NO_VALIDATION = (
    "# The split has no validation patients, so this uses the test patients that a confirmation needs:\n"
    "# prepare the scans with `validation_fraction=0.2` to avoid it."
)


def _block(fields: Mapping[str, Any], indent: str = "  ") -> list[str]:
    return [f"{indent}{key}: {_flow(value)}" for key, value in fields.items()]


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=math.inf, sort_keys=False)
    return text.removesuffix("...\n").strip()

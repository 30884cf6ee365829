"""The measurements that the labels and columns of a store allow, by assembling each."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from medcl3d.comparison.plan.config import Command
from medcl3d.comparison.plan.runs import model_of
from medcl3d.config.kinds import ASSEMBLE
from medcl3d.config.loading import load
from medcl3d.config.packaged import find_config
from medcl3d.core.errors import UserError
from medcl3d.pretraining.usable_pairs import class_columns, number_columns, varying_columns
from medcl3d.store.splits import read_split
from medcl3d.store.store import Store

MOST_SEGMENTED = 10
"""More structures than this are measured by a probe of frozen features, which costs less than fine-tuning."""
LABEL_MAPS = "label"
"""The target of a measurement that predicts label maps: their column of the manifest."""
LABELLED = (2, 8)
"""Numbers of labelled patients of a fine-tuning, as in the packaged `compare/mine`."""


@dataclass(frozen=True)
class Measurement:
    """A way to measure encoders on the test patients of a store.

    command  finetune or evaluate
    fields   that are set in its packaged configuration
    vary     numbers of labelled patients; empty for all
    metric   name of the metric of a comparison
    words    description
    target   the column that is predicted, `LABEL_MAPS`, None if nothing is predicted
    """

    command: Command
    fields: Mapping[str, Any]
    vary: tuple[int, ...]
    metric: str
    words: str
    target: str | None = None


def possible_measurements(store: Store, size: str, common: Mapping[str, Any]) -> list[Measurement]:
    """All measurements that can be assembled, those of most use first.

    size    suffix of the packaged configurations, such as `mine`
    common  fields that are set in any of them: data and encoder
    """
    return [one for one in _candidates(store) if _assembles(one, size, common)]


def _candidates(store: Store) -> Iterator[Measurement]:
    structures = [name for value, name in store.label_names.items() if value > 0]
    if structures:
        segmentation = _segmentation(store, len(structures))
        probe = Measurement(
            "evaluate",
            {"retrieval": None, "voxel_probe": {}},
            (),
            "voxel_probe/dice",
            f"probe of single voxels, {_structures(len(structures))}",
            LABEL_MAPS,
        )
        yield from (segmentation, probe) if len(structures) <= MOST_SEGMENTED else (probe, segmentation)
    for column in class_columns(store.collection):
        fields: dict[str, Any] = {"retrieval": None, "task": {"classification": {"target": column}}}
        fields |= {"linear": {}}
        words = f"linear probe, classification of {column}"
        yield Measurement("evaluate", fields, (), "linear/balanced_accuracy", words, column)
    for column in number_columns(store.collection):
        fields = {"task": {"regression": {"target": column}}, "transfer": "encoder", "num_labelled": None}
        words = f"regression of {column}"
        yield Measurement("finetune", fields, (), "mae", words, column)
    for column in varying_columns(store.collection):
        of_patient = {"retrieval": {"same": "patient", "differ": column}}
        words = f"retrieval of the same patient with another {column}"
        yield Measurement("evaluate", of_patient, (), "retrieval/average_precision", words)


def _segmentation(store: Store, count: int) -> Measurement:
    """Fine-tuning with few labelled patients, if the training side has as many."""
    known = len(labelled_training_patients(store))
    numbers = tuple(dict.fromkeys(min(number, known) for number in LABELLED))
    fields = {"transfer": "encoder", "num_labelled": max(numbers)}
    words = f"segmentation of {_structures(count)}"
    return Measurement("finetune", fields, numbers, "dice", words, LABEL_MAPS)


def labelled_training_patients(store: Store) -> set[str]:
    """The training patients with a label map."""
    patients = store.collection.table["patient"]
    labelled = {patient for scan, patient in enumerate(patients) if store.has_label(scan)}
    return labelled & set(read_split(store.root / "split.json", patients).train)


def _structures(count: int) -> str:
    return f"{count} structure{'s' if count > 1 else ''}"


def _assembles(one: Measurement, size: str, common: Mapping[str, Any]) -> bool:
    """Whether the scans allow a measurement; of several numbers of labelled patients, with the largest."""
    try:
        values = {**common, **one.fields, "init": "scratch"}
        config: Any = load(find_config(f"{one.command}/{size}"), values, model_of(one.command))
        pkgutil.resolve_name(ASSEMBLE[one.command])(config)
    except UserError:
        return False
    return True

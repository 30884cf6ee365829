"""How the encoders of a comparison can be measured with a table's columns, and which pairs to compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from medcl3d.evaluation.statistics.intervals import MIN_CASES_FOR_TEST

MIN_PATIENTS = 4  # with a label, or with several scans: two train and two test
MOST_LABELLED = 8
TEST_FRACTION, MOST_TESTED = 0.25, 0.5
TEST_PATIENTS = MIN_CASES_FOR_TEST  # at least, if the fraction need not exceed MOST_TESTED for it


@dataclass(frozen=True)
class Measure:
    """The endpoint of a comparison.

    command   finetune or evaluate
    metric    its metric
    reason    what it measures, for a comment in the configuration
    probes    fields of the configuration of `evaluate`
    labelled  numbers of labelled patients to compare; () if it needs none
    """

    command: str
    metric: str
    reason: str
    probes: Mapping[str, Any] = field(default_factory=dict)
    labelled: tuple[int, ...] = ()


def choose_measure(table: pd.DataFrame) -> Measure | None:
    """Dice with label maps, else classes, else retrieval of a patient's other scans; None if none fits.

    table  columns of a manifest, as text
    """
    labelled = num_labelled(table)
    if labelled >= MIN_PATIENTS:
        train = labelled - max(1, round(fraction_to_test(table) * labelled))
        numbers = tuple(sorted({min(2, train), min(MOST_LABELLED, train)}))
        reason = "Dice of a fine-tuned segmentation on the test patients"
        return Measure("finetune", "dice", reason, {"voxel_probe": {}}, numbers)
    classes = (
        table[table["class"] != ""].groupby("class")["patient"].nunique() if "class" in table else pd.Series()
    )
    if len(classes) > 1 and classes.min() >= MIN_PATIENTS:
        probes = {"task": {"classification": {"target": "class"}}, "linear": {}, "knn": {}}
        return Measure("evaluate", "linear/auroc", "a linear probe of the column class", probes)
    for column in ("session", "modality", "scan"):
        if column in table and (table.groupby("patient")[column].nunique() > 1).sum() >= MIN_PATIENTS:
            fields = {"same": "patient"} | ({} if column == "scan" else {"differ": column})
            other = "scan" if column == "scan" else f"scan of another {column}"
            reason = (
                f"whether another {other} of the same patient is the nearest: recognition, not segmentation"
            )
            return Measure("evaluate", "retrieval/average_precision", reason, {"retrieval": fields})
    return None


def num_labelled(table: pd.DataFrame) -> int:
    """The number of patients with a label map."""
    return int(table.loc[table["label"] != "", "patient"].nunique()) if "label" in table else 0


def fraction_to_test(table: pd.DataFrame) -> float:
    """The fraction of test patients: a quarter, or more if fewer than a test needs could be measured.

    If label maps are the measure, these are the patients who have one.
    """
    labelled = num_labelled(table)
    measured = labelled if labelled >= MIN_PATIENTS else table["patient"].nunique()
    wanted = TEST_PATIENTS / max(1, measured)
    return round(min(MOST_TESTED, max(TEST_FRACTION, wanted)), 2)


def choose_strategies(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Name of an arm -> the pairs, the objective and the learning rate of its pretraining; the first is that
    of `pretrain.yaml`.

    The learning rates are those of docs/concepts/choosing.md.
    """
    return {
        "dense": {
            "pairs": {"voxel_correspondence": {"min_iou": 0.2, "max_iou": 0.8}},
            "objective": {"dense": {"temperature": 0.1}},
            "lr": 1e-3,
        },
        "crops": {
            "pairs": {"overlapping_crops": {"min_iou": 0.3, "max_iou": 0.8}},
            "objective": {"simclr": {"temperature": 0.1}},
            "lr": 5e-4,
        },
    }

"""The conclusion of a comparison as plain values: the content of `conclusion.json`."""

from __future__ import annotations

from math import isfinite
from typing import Any

from medcl3d.comparison.analysis.analysis import ALPHA, Analysis, ArmNumbers
from medcl3d.comparison.analysis.conclusion import conclusion_sentences
from medcl3d.comparison.analysis.sensitivity import far_replicates
from medcl3d.comparison.analysis.undecided import undecided
from medcl3d.evaluation.statistics.intervals import Interval

SCHEMA = 1


def conclusion(analysis: Analysis) -> dict[str, Any]:
    """The conclusion's sentences and their numbers at the endpoint; None for unknown values."""
    return {
        "schema": SCHEMA,
        "undecided": undecided(analysis),
        "conclusion": list(conclusion_sentences(analysis)),
        "far_replicates": far_replicates(analysis),
        "metric": analysis.metric,
        "higher_is_better": analysis.higher,
        "reference": analysis.reference,
        "family": list(analysis.family),
        "replicates": list(analysis.replicates),
        "num_cases": analysis.num_cases,
        "margin": analysis.margin,
        "arms": [_arm(analysis, index, arm) for index, arm in enumerate(analysis.arms)],
        "next_endpoints": [
            {
                "metric": one.metric,
                "higher_is_better": one.higher,
                "cells": [dict(cell) for cell in one.cells],
                "not_tested_because": one.why_not or None,
                "arms": [
                    {"name": name, "difference": _interval(found), "p": one.adjusted.get(name)}
                    for name, found in one.differences.items()
                ],
            }
            for one in analysis.later
        ],
    }


def _arm(analysis: Analysis, index: int, arm: ArmNumbers) -> dict[str, Any]:
    test, equivalence, order = arm.test, arm.equivalence, analysis.order
    return {
        "name": arm.name,
        "kind": analysis.arm_types[arm.name],
        "mean": _interval(arm.endpoint.mean),
        "difference": None if arm.endpoint.difference is None else _interval(arm.endpoint.difference),
        "p": None if test is None else test.holm,
        "equivalence": equivalence
        and {
            "interval_90": _interval(equivalence.interval),
            "p": equivalence.adjusted,
            "equivalent": None if equivalence.adjusted is None else equivalence.adjusted < ALPHA,
        },
        "probability_best": order and order.best[index],
        "rank": order and {"mean": order.rank[index], "low": order.low[index], "high": order.high[index]},
    }


def _interval(interval: Interval) -> dict[str, float | None]:
    found = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return {name: value if isfinite(value) else None for name, value in found.items()}

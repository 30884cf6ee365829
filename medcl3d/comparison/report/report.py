"""The report of a comparison, one self-contained HTML file: conclusion, numbers, pictures, reproducibility
section.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from medcl3d.comparison.analysis.agreement import better, score_agreement, verdict
from medcl3d.comparison.analysis.analysis import ALPHA, Analysis
from medcl3d.comparison.analysis.conclusion import conclusion_sentences, number, numbers, p_value
from medcl3d.comparison.analysis.cost import costs
from medcl3d.comparison.analysis.cross_dataset import rank_across
from medcl3d.comparison.analysis.embedding_maps import Spread, embedding_maps, scores, spreads
from medcl3d.comparison.analysis.incomplete_runs import IncompleteRun, count, incomplete_runs
from medcl3d.comparison.analysis.results import contrasts
from medcl3d.comparison.analysis.sensitivity import far_replicates
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.runs import Cell, Run, cell_words, endpoint_cells, slug
from medcl3d.comparison.report.figures import (
    Curve,
    Picture,
    difference_dots,
    feature_maps,
    loss_panels,
    metric_curve,
    rank_line,
)
from medcl3d.comparison.report.gallery import cases, pairing
from medcl3d.comparison.report.ranking_table import ranking_table
from medcl3d.comparison.report.reproducibility import documents, provenance_entries
from medcl3d.comparison.run.launch import read_json
from medcl3d.comparison.run.timing import duration, metric_rows
from medcl3d.evaluation.metrics.label_free import BETTER
from medcl3d.evaluation.statistics.coverage import covered
from medcl3d.evaluation.statistics.intervals import MIN_REPLICATES_FOR_TEST
from medcl3d.io.atomic import write_text

NUM_CASES = 3
"""Number of best and of worst cases that are shown."""
MOST_COLUMNS = 6
"""Columns of a table of arms against arms, as many as fit on a page; more arms need further tables."""


def write_report(
    path: Path,
    analysis: Analysis,
    runs: Sequence[Run],
    config: CompareConfig,
    title: str,
    command: str,
    notes: Sequence[str],
) -> None:
    """Write the report of finished `runs` to `path`, atomically, and its figures as SVG files to a folder
    `figures`.

    command: the command that repeats the comparison; notes: warnings shown before the numbers.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("medcl3d.comparison.report"),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals.update(number=number, numbers=numbers, data_uri=svg_uri, p_text=p_value)
    used = [run for run in runs if run.seed in analysis.replicates]
    side, missing = measured_side(used), incomplete_runs(runs, config)
    across = rank_across(analysis, config)
    figures = _figures(analysis, used)
    if across is not None and across.ranks is not None:
        figures["ranks"] = rank_line(across.arms, across.ranks)
    content = {
        **_answer(analysis, used, config, side),
        **_tables(analysis),
        **_cases(analysis, used, side),
        **_without_labels(analysis, used, config),
        **_repeat(analysis, used, config),
        "title": title,
        "command": command,
        "notes": list(dict.fromkeys([*_incomplete(analysis, missing), *notes])),
        "missing": missing,
        "missing_count": count(missing),
        "pairing": pairing(analysis, used, config),
        "contrasts": contrasts(used),
        "figures": figures,
        "features": {name: picture for name, picture in figures.items() if name.startswith("features_")},
        "across": across,
        "far": far_replicates(analysis),
        "any_far": bool(analysis.far),
        "order": _order(analysis),
        "equivalence": _equivalence(analysis),
        "later": _later(analysis),
        "costs": _costs(used, config),
    }
    folder = path.parent / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in figures.items():
        write_text(folder / f"{name}.svg", picture.light)
    write_text(path, environment.get_template("report.html.j2").render(content))


def svg_uri(svg: str) -> str:
    """SVG text as a data URI."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def measured_side(runs: Sequence[Run]) -> str:
    """The patients on which the runs were measured: test, or validation in a screening."""
    return " and ".join(sorted({str(run.planned.get("measured_on", "test")) for run in runs if run.measures}))


def tests(analysis: Analysis, side: str = "test") -> list[str]:
    """Sentences on the intervals, their coverage, and the tests."""
    n = len(analysis.replicates)
    screening = (
        "No test: this is a screening, which only selects candidates; a claim needs new seeds and "
        "untouched test cases."
    )
    if n == 1:
        return [
            "One replicate has no interval and no test.",
            *([screening] if analysis.stage == "screen" else []),
        ]
    varies = (
        "Intervals are for new replicates and new patients: the variance is that of a crossed two-way model"
    )
    alone = f"Intervals are for new replicates on these {side} cases only, not for other cases"
    patients = f"({n} replicates x {analysis.num_cases} {side} patients)"
    sentences = [f"{varies} {patients}." if analysis.num_cases else f"{alone}: {analysis.why_not}."]
    known = covered(n, analysis.num_cases or 0)
    if known is not None:
        replicates, cases, low, high = known
        sentences.append(
            f"In simulated comparisons with normal effects, {replicates} replicates and {cases} cases, "
            f"{low:.0f} to {high:.0f}% "
            "of the 95% intervals covered the true difference, depending on what varies most; occasional "
            "collapsed runs reduce "
            "the coverage (docs/statistics.md)."
        )
    if analysis.tested:
        family = ", ".join(f"“{name}”" for name in analysis.family)
        over = " and over the endpoints in their preregistered order" if analysis.later else ""
        sentences.append(
            "Tests: paired t-tests at the endpoint, Holm-adjusted over the preregistered family "
            f"({family}){over}."
        )
        sentences.append(
            "The exact Wilcoxon signed-rank p-values are a check over replicates only and are not adjusted."
        )
    elif analysis.stage == "screen":
        sentences.append(screening)
    elif analysis.untested:
        sentences.append(f"No test: {analysis.untested}.")
    elif n < MIN_REPLICATES_FOR_TEST:
        sentences.append(f"No test: fewer than {MIN_REPLICATES_FOR_TEST} replicates.")
    if analysis.margin is None and analysis.stage != "screen":
        undeclared = "The smallest difference that matters (`margin`) was not declared"
        sentences.append(
            f"{undeclared}, so no arm is called equivalent to the reference; “not distinguishable” does "
            "not mean equivalent."
        )
    return sentences


def _incomplete(analysis: Analysis, missing: Sequence[IncompleteRun]) -> list[str]:
    left = analysis.planned - len(analysis.replicates)
    words = (
        f"{analysis.planned} replicates were planned; {left} {'is' if left == 1 else 'are'} not "
        "complete in all arms"
    )
    sentences = [f"{words} and excluded from all numbers."] if left else []
    return (
        [*sentences, f"Incomplete runs: {count(missing)}. They are listed with reasons at the end."]
        if missing
        else sentences
    )


def _answer(analysis: Analysis, runs: Sequence[Run], config: CompareConfig, side: str) -> dict[str, Any]:
    seen, certainty = conclusion_sentences(analysis)
    scans = {
        case["scan"]
        for run in runs
        if run.measures
        for case in read_json(run.folder / "results.json").get("cases", [])
    }
    primary = endpoint_cells(config)
    over = f", the mean over {len(primary)} cells ({'; '.join(map(cell_words, primary))})"
    if len(primary) == 1:
        over = f", with {cell_words(primary[0])}" if primary[0] else ""
    direction = "higher" if analysis.higher else "lower"
    chosen = (
        " A screening measures on validation patients, so test patients stay untouched."
        if side == "validation"
        else ""
    )
    return {
        "seen": seen,
        "certainty": certainty,
        "basis": f"{len(analysis.replicates)} of {analysis.planned} replicates complete in all "
        f"{len(analysis.arms)} arms; "
        f"{len(scans)} {side} cases. A replicate is a new pretraining, a new label selection and a new "
        "fine-tuning, with one seed "
        "for all arms"
        + (f", in each of {config.folds} folds; its value is the mean over them." if config.folds else ".")
        + chosen,
        "endpoint": f"Preregistered endpoint: {analysis.metric} ({direction} is better), one number per "
        f"replicate and arm{over}.",
        "tests": tests(analysis, side),
    }


def _tables(analysis: Analysis) -> dict[str, Any]:
    others = [arm for arm in analysis.arms if arm.name != analysis.reference]
    n = len(analysis.replicates)
    return {
        "metric": analysis.metric,
        "best_first": "descending" if analysis.higher else "ascending",
        "reference": analysis.reference,
        "baseline": analysis.baseline,
        "arm_names": [arm.name for arm in analysis.arms],
        "cells": [cell_words(cell) for cell in analysis.cells],
        "ranking": ranking_table(analysis),
        "table": [
            {"name": arm.name, "means": [arm.cells[cell].mean for cell in analysis.cells]}
            for arm in analysis.arms
        ],
        "paired": [
            {"name": arm.name, "differences": [arm.cells[c].difference for c in analysis.cells], "n": n}
            for arm in others
        ],
        "labels": [
            {
                "name": arm.name,
                "needed": [
                    {"text": text, "value": _labels(text)} for text in map(arm.labels.get, analysis.cells)
                ],
            }
            for arm in analysis.arms
            if arm.labels
        ],
        "matrices": _matrices(analysis) if len(analysis.arms) > 2 else [],
    }


def _order(analysis: Analysis) -> list[dict[str, Any]]:
    """Arms by their mean rank under resampling, best first; empty for few replicates."""
    order = analysis.order
    if order is None:
        return []
    columns = zip(analysis.arms, order.best, order.rank, order.low, order.high, strict=True)
    rows = [
        {"name": arm.name, "best": best, "rank": rank, "low": low, "high": high}
        for arm, best, rank, low, high in columns
    ]
    return sorted(rows, key=lambda row: float(row["rank"]))  # type: ignore[arg-type]


def _equivalence(analysis: Analysis) -> dict[str, Any] | None:
    """Equivalence of the arms within the preregistered margin; None if none was declared."""
    if analysis.margin is None:
        return None
    rows = [
        {
            "name": arm.name,
            "interval": arm.equivalence.interval,
            "p": arm.equivalence.adjusted,
            "words": _within(analysis, arm.name, arm.equivalence.adjusted),
        }
        for arm in analysis.arms
        if arm.equivalence is not None
    ]
    few = len(analysis.replicates) < MIN_REPLICATES_FOR_TEST
    why_not = (
        analysis.margin_untested
        or analysis.untested
        or (f"there are fewer than {MIN_REPLICATES_FOR_TEST} replicates" if few else "")
    )
    why_not = "this is a screening" if analysis.stage == "screen" else why_not
    return {
        "margin": analysis.margin,
        "rows": rows,
        "why_not": why_not,
        "tested": any(row["p"] is not None for row in rows),
    }


def _within(analysis: Analysis, name: str, p: float | None) -> str:
    if p is None:
        return "" if name in analysis.family else "exploratory"
    return "equivalent" if p < ALPHA else "not shown to be equivalent"


def _later(analysis: Analysis) -> list[dict[str, Any]]:
    """The endpoints in their preregistered order, the primary one first."""
    family = [analysis.arm(name) for name in analysis.family]
    first: dict[str, Any] = {
        "title": f"1. {analysis.metric}, the primary endpoint",
        "why_not": "",
        "rows": [
            (arm.name, arm.endpoint.difference, None if arm.test is None else arm.test.holm) for arm in family
        ],
    }
    rest: list[dict[str, Any]] = [
        {
            "title": f"{place}. {one.words}",
            "why_not": one.why_not,
            "rows": [
                (name, difference, one.adjusted.get(name)) for name, difference in one.differences.items()
            ],
        }
        for place, one in enumerate(analysis.later, 2)
    ]
    return [first, *rest] if rest else []


def _labels(text: str | None) -> float | str:
    """A number of labels as a sort key: "more than 8" sorts after 8."""
    beyond = {"more": 0.5, "fewer": -0.5}
    return "" if not text else float(text.split()[-1]) + beyond.get(text.split()[0], 0.0)


def _matrices(analysis: Analysis) -> list[dict[str, Any]]:
    """Differences of all pairs of arms, in tables with about equal numbers of columns."""
    names = [arm.name for arm in analysis.arms]
    blocks = [list(block) for block in np.array_split(names, -(-len(names) // MOST_COLUMNS))]
    return [
        {
            "columns": block,
            "rows": [{"name": a, "differences": [analysis.pairs.get((a, b)) for b in block]} for a in names],
        }
        for block in blocks
    ]


def _figures(analysis: Analysis, runs: Sequence[Run]) -> dict[str, Picture]:
    found = {
        "curve": metric_curve(analysis),
        "differences": difference_dots(analysis),
        "losses_pretraining": _losses([run for run in runs if not run.measures], analysis.cells[-1]),
        "losses_measuring": _losses([run for run in runs if run.measures], analysis.cells[-1]),
        **{f"features_{slug(name)}": picture for name, picture in feature_maps(embedding_maps(runs)).items()},
    }
    return {name: picture for name, picture in found.items() if picture is not None}


def _costs(runs: Sequence[Run], config: CompareConfig) -> list[dict[str, Any]]:
    def shown(seconds: float | None) -> dict[str, Any]:
        return {"value": seconds or 0.0, "text": "" if seconds is None else duration(seconds)}

    return [
        {
            "name": cost.arm,
            "pretraining": shown(cost.pretraining_s),
            "measuring": shown(cost.measuring_s),
            "memory_mib": cost.peak_memory_mib,
        }
        for cost in costs(runs, config)
    ]


def _without_labels(analysis: Analysis, runs: Sequence[Run], config: CompareConfig) -> dict[str, Any]:
    found = scores(runs)
    agreed = score_agreement(found, config, analysis.values, analysis.higher)

    def shown(score: str, spread: Spread | None) -> dict[str, Any] | None:
        return None if spread is None else {"spread": spread, "better": better(score, spread.mean)}

    return {
        "score_names": [{"name": name, "better": words} for name, words in BETTER.items()],
        "scores": [
            {"name": name, "values": [shown(score, of.get(score)) for score in BETTER]}
            for name, of in spreads(found).items()
        ],
        "agreement": []
        if agreed is None
        else [{"score": score, **vars(one)} for score, one in agreed.by_score.items()],
        "num_encoders": len(agreed.order) if agreed else 0,
        "verdict": verdict(agreed, analysis.metric) if agreed else [],
    }


def case_means(runs: Sequence[Run], metric: str) -> dict[str, dict[str, float]]:
    """Scan -> arm -> mean of the metric over classes, cells and replicates; only scans that all runs
    tested.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for case in read_json(run.folder / "results.json").get("cases", []) if run.measures else []:
            if isinstance(case.get(metric), int | float):
                found.setdefault(str(case["scan"]), {}).setdefault(run.name, []).append(float(case[metric]))
    arms = {run.name for run in runs if run.measures}
    return {
        scan: {arm: float(np.mean(values)) for arm, values in by_arm.items()}
        for scan, by_arm in found.items()
        if set(by_arm) == arms
    }


def _cases(analysis: Analysis, runs: Sequence[Run], side: str) -> dict[str, Any]:
    means = case_means(runs, analysis.metric)
    order = sorted(
        means, key=lambda scan: (float(np.mean(list(means[scan].values()))), scan), reverse=analysis.higher
    )
    shown = order if len(order) <= 2 * NUM_CASES else [*order[:NUM_CASES], *order[-NUM_CASES:]]
    words = (
        f"Mean {analysis.metric} per {side} scan over classes, cells and replicates, ordered by the "
        "mean over arms, best first"
    )
    left = len(order) - len(shown)
    return {
        "side": side,
        "case_words": words + (f"; {left} scans in between are not shown." if left else "."),
        "case_names": shown,
        "cases": [
            {"name": arm.name, "numbers": [means[scan][arm.name] for scan in shown]} for arm in analysis.arms
        ],
        "case_pictures": cases(analysis, runs, side),
        "case_cell": cell_words(analysis.cells[-1]),
    }


def _losses(runs: Sequence[Run], cell: Cell) -> Picture | None:
    panels: dict[str, list[Curve]] = {}
    for run in runs:
        rows = (
            [row for row in metric_rows(run) if "loss" in row and "step" in row]
            if run.cell in ((), cell)
            else []
        )
        if not rows:
            continue
        fold = "" if run.fold is None else f", fold {run.fold}"
        curve = Curve(
            f"replicate {run.seed}{fold}", [row["step"] for row in rows], [row["loss"] for row in rows]
        )
        panels.setdefault(run.name, []).append(curve)
    return loss_panels(panels)


def _repeat(analysis: Analysis, runs: Sequence[Run], config: CompareConfig) -> dict[str, Any]:
    return {
        "seeds": ", ".join(map(str, analysis.replicates)),
        "provenance": provenance_entries(runs),
        "num_runs": len(runs),
        "moved": any(run.moved_to for run in runs),
        "documents": documents(analysis, runs, config),
    }

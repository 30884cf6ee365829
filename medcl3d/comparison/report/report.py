"""The report of a comparison as one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medcl3d.comparison.analysis.agreement import better, score_agreement, verdict
from medcl3d.comparison.analysis.analysis import ALPHA, Analysis
from medcl3d.comparison.analysis.compared_arms import Gaps
from medcl3d.comparison.analysis.conclusion import conclusion_sentences
from medcl3d.comparison.analysis.cost import costs
from medcl3d.comparison.analysis.cross_dataset import rank_across
from medcl3d.comparison.analysis.embedding_maps import DIRECTIONS, embedding_maps, scores, spreads
from medcl3d.comparison.analysis.results import contrasts
from medcl3d.comparison.analysis.sensitivity import far_replicates
from medcl3d.comparison.analysis.training_warnings import training_warnings
from medcl3d.comparison.analysis.undecided import undecided
from medcl3d.comparison.plan.cells import Cell, cell_words, slug
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.runs import Run
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
from medcl3d.comparison.report.page import write_page
from medcl3d.comparison.report.ranking_table import ranking_table
from medcl3d.comparison.report.reproducibility import documents, provenance_entries
from medcl3d.comparison.report.sentences import basis, endpoint, incomplete, measured_side, tests
from medcl3d.comparison.run.timing import metric_rows
from medcl3d.evaluation.statistics.intervals import MIN_REPLICATES_FOR_TEST
from medcl3d.io.atomic import write_text
from medcl3d.io.json_file import read_record
from medcl3d.io.progress import duration

NUM_CASES = 3
"""Number of best and of worst cases that are shown."""
MOST_COLUMNS = 6
"""Columns of a table of arms against arms, as many as fit on a page; more arms need further tables."""


def write_report(
    path: Path,
    analysis: Analysis,
    runs: Sequence[Run],
    compared: CompareConfig,
    config: CompareConfig,
    title: str,
    command: str,
    notes: Sequence[str],
    gaps: Gaps,
) -> None:
    """Write the report of finished `runs` to `path`, atomically, and its figures as SVG files to `figures/`.

    runs, compared: of the compared arms; config: the comparison as planned; command: the command that repeats
    it; notes: warnings shown before the numbers; gaps: what is incomplete.
    """
    used = [run for run in runs if run.seed in analysis.replicates]
    side, across = measured_side(used), rank_across(analysis, compared)
    figures = _figures(analysis, used)
    if across is not None and across.ranks is not None:
        figures["ranks"] = rank_line(across.arms, across.ranks)
    content = {
        "analysis": analysis,
        "title": title,
        "command": command,
        "conclusion": conclusion_sentences(analysis),
        "undecided": undecided(analysis),
        "training_warnings": training_warnings(analysis, used),
        "basis": basis(analysis, used, compared),
        "endpoint": endpoint(analysis, compared),
        "tests": tests(analysis, side),
        "notes": list(dict.fromkeys([*incomplete(analysis, gaps), *notes])),
        "gaps": gaps,
        "ranking": ranking_table(analysis),
        "sort_key": _sort_key,
        "matrices": _matrices(analysis),
        "order": _order(analysis),
        "equivalence": _equivalence(analysis),
        "later": _later(analysis),
        "far": far_replicates(analysis),
        "across": across,
        "figures": figures,
        "features": [picture for name, picture in figures.items() if name.startswith("features_")],
        "pairing": pairing(analysis, used, compared),
        **_cases(analysis, used, side),
        **_without_labels(analysis, used, compared),
        "costs": costs(used, compared),
        "duration": duration,
        "contrasts": contrasts(used),
        "provenance": provenance_entries(used),
        "num_runs": len(used),
        "moved": any(run.moved_to for run in used),
        "documents": documents(analysis, used, config),
    }
    folder = path.parent / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in figures.items():
        write_text(folder / f"{name}.svg", picture.light)
    write_page(path, "report.html.j2", content)


def _order(analysis: Analysis) -> list[dict[str, Any]]:
    """Arms by their mean rank under resampling, best first; empty for few replicates."""
    order = analysis.order
    if order is None:
        return []
    columns = {"best": order.best, "rank": order.rank, "low": order.low, "high": order.high}
    rows: list[dict[str, Any]] = [
        {"name": arm.name, **{name: column[k] for name, column in columns.items()}}
        for k, arm in enumerate(analysis.arms)
    ]
    return sorted(rows, key=lambda row: row["rank"])


def _equivalence(analysis: Analysis) -> dict[str, Any] | None:
    """Arms with their equivalence and its words; None if no margin was declared."""
    if analysis.margin is None:
        return None
    rows = [(arm.name, arm.equivalence) for arm in analysis.arms if arm.equivalence is not None]
    few = len(analysis.replicates) < MIN_REPLICATES_FOR_TEST
    why_not = f"there are fewer than {MIN_REPLICATES_FOR_TEST} replicates" if few else ""
    why_not = analysis.margin_untested or analysis.untested or why_not
    return {
        "rows": [(name, one, _within(analysis, name, one.adjusted)) for name, one in rows],
        "why_not": "this is a screening" if analysis.stage == "screen" else why_not,
        "tested": any(one.adjusted is not None for _, one in rows),
    }


def _within(analysis: Analysis, name: str, p: float | None) -> str:
    if p is None:
        return "" if name in analysis.family else "exploratory"
    return "equivalent" if p < ALPHA else "not shown to be equivalent"


def _later(analysis: Analysis) -> list[dict[str, Any]]:
    """The endpoints in their preregistered order, the primary one first; empty if it is the only one."""
    family = [arm for arm in analysis.arms if arm.name in analysis.family]
    primary = [
        (arm.name, arm.endpoint.difference, None if arm.test is None else arm.test.holm) for arm in family
    ]
    found = [{"title": f"1. {analysis.metric}, the primary endpoint", "why_not": "", "rows": primary}]
    for place, one in enumerate(analysis.later, 2):
        rows = [(name, difference, one.adjusted.get(name)) for name, difference in one.differences.items()]
        found.append({"title": f"{place}. {one.words}", "why_not": one.why_not, "rows": rows})
    return found if analysis.later else []


def _sort_key(text: str | None) -> float | str:
    """A number of labels as a sort key: "more than 8" sorts after 8."""
    beyond = {"more": 0.5, "fewer": -0.5}
    return "" if not text else float(text.split()[-1]) + beyond.get(text.split()[0], 0.0)


def _matrices(analysis: Analysis) -> list[list[str]]:
    """The columns of the tables of all pairs of arms, about equally many in each; empty for two arms."""
    names = [arm.name for arm in analysis.arms]
    blocks = np.array_split(names, -(-len(names) // MOST_COLUMNS)) if len(names) > 2 else []
    return [list(block) for block in blocks]


def _figures(analysis: Analysis, runs: Sequence[Run]) -> dict[str, Picture]:
    last = analysis.cells[-1]
    found = {
        "curve": metric_curve(analysis),
        "differences": difference_dots(analysis, [row.arm for row in ranking_table(analysis).rows]),
        "losses_pretraining": _losses([run for run in runs if not run.measures], last),
        "losses_measuring": _losses([run for run in runs if run.measures], last),
        **{f"features_{slug(name)}": picture for name, picture in feature_maps(embedding_maps(runs)).items()},
    }
    return {name: picture for name, picture in found.items() if picture is not None}


def _without_labels(analysis: Analysis, runs: Sequence[Run], config: CompareConfig) -> dict[str, Any]:
    found = scores(runs)
    shown = spreads(found)
    agreed = score_agreement(found, config, analysis.values, analysis.higher)
    return {
        "score_names": {
            name: words for name, words in DIRECTIONS.items() if any(name in row for row in shown.values())
        },
        "scores": shown,
        "better": better,
        "agreement": agreed,
        "verdict": verdict(agreed, analysis.metric) if agreed else [],
    }


def case_means(runs: Sequence[Run], metric: str) -> dict[str, dict[str, float]]:
    """Scan -> arm -> mean metric over classes, cells and replicates; only scans that all runs tested."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for case in read_record(run.folder / "results.json").get("cases", []) if run.measures else []:
            if isinstance(case.get(metric), int | float):
                found.setdefault(str(case["scan"]), {}).setdefault(run.name, []).append(float(case[metric]))
    arms = {run.name for run in runs if run.measures}
    common = {scan: by_arm for scan, by_arm in found.items() if set(by_arm) == arms}
    return {scan: {arm: float(np.mean(of)) for arm, of in by_arm.items()} for scan, by_arm in common.items()}


def _cases(analysis: Analysis, runs: Sequence[Run], side: str) -> dict[str, Any]:
    means = case_means(runs, analysis.metric)
    of_scan = {scan: float(np.mean(list(of.values()))) for scan, of in means.items()}
    order = sorted(means, key=lambda scan: (of_scan[scan], scan), reverse=analysis.higher)
    shown = order if len(order) <= 2 * NUM_CASES else [*order[:NUM_CASES], *order[-NUM_CASES:]]
    over = f"Mean {analysis.metric} per {side} scan over classes, cells and replicates"
    left = len(order) - len(shown)
    pictures, same = cases(analysis, runs, side)
    rest = f"; {left} scans in between are not shown." if left else "."
    return {
        "side": side,
        "case_words": f"{over}, ordered by the mean over arms, best first{rest}",
        "case_names": shown,
        "case_means": means,
        "case_pictures": pictures,
        "same_cases": same,
        "case_cell": cell_words(analysis.cells[-1]),
    }


def _losses(runs: Sequence[Run], cell: Cell) -> Picture | None:
    panels: dict[str, list[Curve]] = {}
    for run in runs:
        if run.cell not in ((), cell):
            continue
        rows = [row for row in metric_rows(run.folder) if "loss" in row and "step" in row]
        if not rows:
            continue
        fold = "" if run.fold is None else f", fold {run.fold}"
        curve = Curve(
            f"replicate {run.seed}{fold}", [row["step"] for row in rows], [row["loss"] for row in rows]
        )
        panels.setdefault(run.name, []).append(curve)
    return loss_panels(panels)

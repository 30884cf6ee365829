"""One self-contained HTML file on a comparison: the answer, its certainty, the numbers, pictures, and what repeats it."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml

from medcl3d.comparison.across import rank_across
from medcl3d.comparison.analysis import Analysis
from medcl3d.comparison.answer import answer, number, p_value
from medcl3d.comparison.cost import costs
from medcl3d.comparison.figures import Curve, Picture, difference_dots, feature_maps, loss_panels, metric_curve, rank_line
from medcl3d.comparison.launch import command_of, read_json
from medcl3d.comparison.plan import MODELS, Cell, CompareConfig, Run, in_endpoint
from medcl3d.comparison.portraits import maps, scores
from medcl3d.comparison.timing import duration
from medcl3d.config import differences, plain
from medcl3d.data.atomic import write_text
from medcl3d.evaluation.coverage import NUM_CASES as NUM_SIMULATED
from medcl3d.evaluation.coverage import covered
from medcl3d.evaluation.label_free import BETTER
from medcl3d.evaluation.statistics import MIN_REPLICATES_FOR_TEST

NUM_CASES = 3
"""How many of the best and of the worst test cases are shown."""


def write_report(
    path: Path, analysis: Analysis, runs: Sequence[Run], config: CompareConfig, title: str, command: str, notes: Sequence[str]
) -> None:
    """Write the report of finished `runs` to `path`, atomically, and its figures as SVG files to `figures` beside it.

    command: what repeats the comparison; notes: what a reader must know beside the numbers.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("medcl3d.comparison"), autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.globals.update(number=number, data_uri=svg_uri, p_text=p_value)
    used = [run for run in runs if run.seed in analysis.replicates]
    tables = _tables(analysis)
    losses = _losses(used, analysis.cells[-1])
    features = feature_maps(maps(used))
    across = rank_across(analysis, config)
    ranked = None if across is None or across.ranks is None else rank_line(across.arms, across.ranks)
    content = {
        **_answer(analysis, used, config),
        **tables,
        **_cases(analysis, used),
        **_pictures(analysis, used),
        **_without_labels(analysis, used, config),
        **_repeat(analysis, used, config),
        "title": title,
        "command": command,
        "notes": [*_incomplete(analysis), *notes],
        "contrasts": contrasts(used),
        "losses": losses,
        "features": features,
        "across": across,
        "ranked": ranked,
        "costs": _costs(used, config),
    }
    folder = path.parent / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in (
        ("curve", tables["curve"]),
        ("differences", tables["differences"]),
        ("losses", losses),
        ("features", features),
        ("ranks", ranked),
    ):
        if picture is not None:
            write_text(folder / f"{name}.svg", picture.light)
    write_text(path, environment.get_template("report.html.j2").render(content))


def svg_uri(svg: str) -> str:
    """SVG text as a data URI."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def png_uri(path: Path) -> str:
    """A PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def cell_words(cell: Cell) -> str:
    """A cell as a heading."""
    return ", ".join(f"{key} {value}" for key, value in cell) or "all"


def tests(analysis: Analysis) -> list[str]:
    """What the intervals are of, how well they cover, what is tested and what is not: sentences for readers."""
    n = len(analysis.replicates)
    screening = "No test: this is a screening, which picks candidates; a claim needs new seeds and untouched test cases."
    if n == 1:
        return ["One replicate has no interval and no test.", *([screening] if analysis.stage == "screen" else [])]
    varies = "An interval speaks of new replicates and of new test cases: its variance is that of a crossed two-way model"
    alone = "An interval speaks of new replicates on these test cases only, not of other cases"
    said = [f"{varies} ({n} replicates x {analysis.num_cases} patients)." if analysis.num_cases else f"{alone}: {analysis.why_not}."]
    known = covered(n)
    if known is not None and analysis.num_cases:
        measured, low, high = known
        said.append(
            f"Of simulated comparisons of {measured} replicates and {NUM_SIMULATED} cases, {low:.0f} to {high:.0f}% of the 95% intervals "
            "held the truth, depending on what varies most (docs/statistics.md)."
        )
    if analysis.tested:
        family = ", ".join(f"“{name}”" for name in analysis.family)
        said.append(f"Tests: paired t at the endpoint, Holm-adjusted over the declared family ({family}).")
        said.append("The exact Wilcoxon signed-rank p-values are a check over replicates alone and not adjusted.")
    elif analysis.stage == "screen":
        said.append(screening)
    elif n < MIN_REPLICATES_FOR_TEST:
        said.append(f"No test: fewer than {MIN_REPLICATES_FOR_TEST} replicates.")
    return said


def _incomplete(analysis: Analysis) -> list[str]:
    missing = analysis.planned - len(analysis.replicates)
    words = f"{analysis.planned} replicates were planned; {missing} {'is' if missing == 1 else 'are'} not complete in all arms"
    return [f"{words} and left out of every number here."] if missing else []


def _answer(analysis: Analysis, runs: Sequence[Run], config: CompareConfig) -> dict[str, Any]:
    seen, certainty = answer(analysis)
    cases = {case["scan"] for run in runs if run.measures for case in read_json(run.folder / "results.json").get("cases", [])}
    primary = [cell for cell in analysis.cells if in_endpoint(cell, config)]
    over = "" if len(primary) == 1 else f", the mean over {len(primary)} cells ({'; '.join(map(cell_words, primary))})"
    direction = "higher" if analysis.higher else "lower"
    return {
        "seen": seen,
        "certainty": certainty,
        "basis": f"{len(analysis.replicates)} of {analysis.planned} replicates complete in all {len(analysis.arms)} arms; "
        f"{len(cases)} test cases. A replicate is a new pretraining, a new draw of labels and a new fine-tuning, shared by all arms"
        + (f", in each of {config.folds} folds; its number is the mean over them." if config.folds else "."),
        "endpoint": f"Declared endpoint: {analysis.metric} ({direction} is better), one number a replicate and arm{over}.",
        "tested": analysis.tested,
        "tests": tests(analysis),
    }


def _tables(analysis: Analysis) -> dict[str, Any]:
    def row(name: str) -> dict[str, Any]:
        arm = analysis.arm(name)
        return {
            "name": name,
            "mean": arm.endpoint.mean,
            "difference": arm.endpoint.difference,
            "holm": "" if arm.test is None else p_value(arm.test.holm),
            "wilcoxon": "" if arm.test is None else p_value(arm.test.wilcoxon),
            "role": _role(analysis, name),
            "effect": arm.effect,
            "smallest": arm.smallest,
        }

    others = [arm for arm in analysis.arms if arm.name != analysis.reference]
    n = len(analysis.replicates)
    return {
        "metric": analysis.metric,
        "reference": analysis.reference,
        "arm_names": [arm.name for arm in analysis.arms],
        "cells": [cell_words(cell) for cell in analysis.cells],
        "primary": [row(arm.name) for arm in analysis.arms],
        "table": [{"name": arm.name, "means": [arm.cells[cell].mean for cell in analysis.cells]} for arm in analysis.arms],
        "paired": [{"name": arm.name, "differences": [arm.cells[c].difference for c in analysis.cells], "n": n} for arm in others],
        "labels": [{"name": arm.name, "needed": [arm.labels.get(cell, "") for cell in analysis.cells]} for arm in others if arm.labels],
        "matrix": _matrix(analysis) if len(analysis.arms) > 2 else [],
        "curve": metric_curve(analysis),
        "differences": difference_dots(analysis),
    }


def _role(analysis: Analysis, name: str) -> str:
    if name == analysis.reference:
        return "reference"
    tested = "tested" if analysis.tested else "not tested"
    return tested if name in analysis.family else "exploratory"


def _matrix(analysis: Analysis) -> list[dict[str, Any]]:
    names = [arm.name for arm in analysis.arms]
    return [{"name": a, "differences": [None if a == b else analysis.pairs[a, b] for b in names]} for a in names]


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
    found = scores(runs, config, analysis.values, analysis.higher)
    return {
        "score_names": [{"name": name, "better": better} for name, better in BETTER.items()],
        "scores": [{"name": name, "values": [values.get(score) for score in BETTER]} for name, values in found.encoders.items()],
        "agreement": [found.agreement[score] for score in BETTER] if any(found.agreement.values()) else [],
    }


def case_means(runs: Sequence[Run], metric: str) -> dict[str, dict[str, float]]:
    """Scan -> arm -> mean of the metric over classes, cells and replicates; only scans that all runs tested."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for case in read_json(run.folder / "results.json").get("cases", []) if run.measures else []:
            if isinstance(case.get(metric), int | float):
                found.setdefault(str(case["scan"]), {}).setdefault(run.name, []).append(float(case[metric]))
    arms = {run.name for run in runs if run.measures}
    return {scan: {arm: float(np.mean(values)) for arm, values in by_arm.items()} for scan, by_arm in found.items() if set(by_arm) == arms}


def _cases(analysis: Analysis, runs: Sequence[Run]) -> dict[str, Any]:
    means = case_means(runs, analysis.metric)
    order = sorted(means, key=lambda scan: (float(np.mean(list(means[scan].values()))), scan), reverse=analysis.higher)
    shown = order if len(order) <= 2 * NUM_CASES else [*order[:NUM_CASES], *order[-NUM_CASES:]]
    words = f"Mean {analysis.metric} of a test scan over classes, cells and replicates, ordered by the mean over arms, best first"
    left = len(order) - len(shown)
    return {
        "case_words": words + (f"; {left} scans between are left out." if left else "."),
        "cases": [{"scan": scan, "numbers": [means[scan][arm.name] for arm in analysis.arms]} for scan in shown],
    }


def _pictures(analysis: Analysis, runs: Sequence[Run]) -> dict[str, Any]:
    first = [run for run in runs if run.seed == analysis.replicates[0] and run.shown]

    def gallery(command: str, file: str, alt: str, cell: Cell) -> list[dict[str, str]]:
        chosen = [run for run in first if run.command == command and run.cell == cell and (run.folder / "pictures" / file).is_file()]
        return [
            {"uri": png_uri(run.folder / "pictures" / file), "alt": f"{alt}: {run}", "caption": f"{run}: {alt[0].lower()}{alt[1:]}"}
            for run in chosen
        ]

    # Of the cells, the last stands for all: it is the one with the most labels as people write them.
    last = analysis.cells[-1]
    measured = [run for run in first if run.measures]
    return {
        "pair_pictures": gallery("pretrain", "pairs.png", "Views that the strategy draws together", ()),
        "relation_pictures": gallery("pretrain", "relation.png", "Which things of a batch attract and which repel", ()),
        "case_pictures": gallery(measured[0].command, "cases.png", "Best and worst test cases with true and predicted outlines", last),
    }


def _losses(runs: Sequence[Run], cell: Cell) -> Picture | None:
    panels: dict[str, list[Curve]] = {}
    for run in runs:
        file = run.folder / "metrics.jsonl"
        if run.cell not in ((), cell) or not file.is_file():
            continue
        rows = [row for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()) if "loss" in row]
        fold = "" if run.fold is None else f", fold {run.fold}"
        curve = Curve(f"replicate {run.seed}{fold}", [row["step"] for row in rows], [row["loss"] for row in rows])
        panels.setdefault(f"{run.command}: {run.name}", []).append(curve)
    return loss_panels(panels)


def contrasts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """In what each pretraining and each arm of one replicate differs from the first, a line a field."""
    rows: list[dict[str, Any]] = []
    for command in MODELS:
        same = [run for run in runs if run.command == command and run.seed == runs[0].seed and run.shown]
        same = [run for run in same if run.cell == same[0].cell]
        for run in same[1:]:
            lines = [line for line in differences(same[0].planned, run.planned) if not line.startswith("out_dir:")]
            rows.append({"what": f"{command} {run.name}", "other": same[0].name, "lines": lines})
    return rows


def _repeat(analysis: Analysis, runs: Sequence[Run], config: CompareConfig) -> dict[str, Any]:
    provenance = read_json(runs[0].folder / "provenance.json")
    named = {**({"python": provenance["python"]} if "python" in provenance else {}), **provenance.get("versions", {})}
    commit = f", commit {provenance['commit']}" if provenance.get("commit") else ""
    data = sorted({json.dumps(read_json(run.folder / "provenance.json").get("data")) for run in runs})
    documents = [{"title": "The comparison", "text": _yaml(plain(config))}]
    for run in runs:
        if run.shown and run.seed == analysis.replicates[0] and run.cell in ((), analysis.cells[0]):
            text = f"{shlex.join(['python', *command_of(run)])}\n\n{_yaml(dict(run.planned))}"
            documents.append({"title": f"{run}: its command and its full configuration", "text": text})
    return {
        "seeds": ", ".join(map(str, analysis.replicates)),
        "versions": "Made with " + ", ".join(f"{name} {version}" for name, version in named.items()) + commit + "." if named else "",
        "data": "Hash of the data: " + ", ".join(data) + ".",
        "documents": documents,
    }


def _yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)

"""The numbers of a comparison as Markdown tables, for a terminal and for a page of results."""

from __future__ import annotations

from medcl3d.comparison.analysis.analysis import Analysis
from medcl3d.comparison.analysis.compared_arms import Gaps
from medcl3d.comparison.analysis.conclusion import conclusion_sentences
from medcl3d.comparison.analysis.number_text import number, p_value, with_interval
from medcl3d.comparison.analysis.sensitivity import far_replicates
from medcl3d.comparison.analysis.undecided import undecided
from medcl3d.comparison.plan.cells import cell_words

NONE = Gaps()


def markdown(analysis: Analysis, gaps: Gaps = NONE) -> str:
    """The conclusion, then tables: incomplete arms, means, paired differences, next endpoints, stability of
    the order."""
    heads = [cell_words(cell) for cell in analysis.cells]
    means, differences = [], []
    for arm in analysis.arms:
        cells = [arm.cells[cell] for cell in analysis.cells]
        means.append([arm.name, *(with_interval(cell.mean) for cell in cells)])
        of_arm = [with_interval(cell.difference, sign=True) for cell in cells if cell.difference is not None]
        if arm.name != analysis.reference:
            differences.append([arm.name, *of_arm])
    n = len(analysis.replicates)
    patients = f" and {analysis.num_cases} patients" if analysis.num_cases else ""
    replicates = f"{n} replicate{'s' if n > 1 else ''}{patients}"
    return "\n".join(
        [
            *filter(None, [undecided(analysis)]),
            *conclusion_sentences(analysis),
            *(far_replicates(analysis) if analysis.far else []),
            "",
            *_incomplete(gaps),
            f"Mean {analysis.metric} and its 95% interval over {replicates}:",
            "",
            *_table(["arm", *heads], means),
            "",
            f"Difference to “{analysis.reference}”, paired over {replicates}:",
            "",
            *_table(["arm", *heads], differences),
            "",
            *_next_endpoints(analysis),
            *_order(analysis),
        ]
    )


def _incomplete(gaps: Gaps) -> list[str]:
    rows = [
        [one.name, str(one.complete), "yes" if one.compared else "left out", "; ".join(one.reasons)]
        for one in gaps.arms
    ]
    heads = ["arm", "complete replicates", "in the comparison", "reason"]
    return ["Incomplete arms:", "", *_table(heads, rows), ""] if rows else []


def _next_endpoints(analysis: Analysis) -> list[str]:
    lines: list[str] = []
    for place, one in enumerate(analysis.later, 2):
        p = {name: p_value(value) for name, value in one.adjusted.items()}
        rows = [
            [name, with_interval(difference, sign=True), p.get(name, "not tested")]
            for name, difference in one.differences.items()
        ]
        reason = f" Not tested: {one.why_not}." if one.why_not else ""
        heading = f"Endpoint {place} of the preregistered order, {one.words}.{reason}"
        lines += [heading, "", *_table(["arm", "difference", "p"], rows), ""]
    return lines


def _order(analysis: Analysis) -> list[str]:
    order = analysis.order
    if order is None:
        return []
    rows = []
    for k, arm in enumerate(analysis.arms):
        best, rank = number(order.best[k], digits=2), number(order.rank[k], digits=1)
        rows.append([arm.name, best, rank, f"{order.low[k]:.0f} to {order.high[k]:.0f}"])
    heading = "The order of the arms under resampling of replicates and cases (exploratory):"
    return [heading, "", *_table(["arm", "probability of being best", "mean rank", "ranks, 95%"], rows), ""]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = ([cell.replace("|", "\\|") for cell in row] for row in (head, ["---"] * len(head), *rows))
    return [f"| {' | '.join(line)} |" for line in lines]

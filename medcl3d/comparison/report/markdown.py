"""The numbers of a comparison as Markdown tables, for a terminal and for a page of results."""

from __future__ import annotations

from medcl3d.comparison.analysis.analysis import Analysis
from medcl3d.comparison.analysis.conclusion import conclusion_sentences, number, p_value, with_interval
from medcl3d.comparison.analysis.sensitivity import far_replicates
from medcl3d.comparison.plan.runs import cell_words


def markdown(analysis: Analysis) -> str:
    """The conclusion, then tables: means and paired differences with 95% intervals, next endpoints, stability
    of the order.
    """
    heads = [cell_words(cell) for cell in analysis.cells]
    means = [
        [arm.name, *(with_interval(arm.cells[cell].mean) for cell in analysis.cells)] for arm in analysis.arms
    ]
    differences = []
    for arm in analysis.arms:
        cells = [arm.cells[cell].difference for cell in analysis.cells]
        differences.append(
            [arm.name, *(with_interval(cell, sign=True) for cell in cells if cell is not None)]
        )
    n = len(analysis.replicates)
    replicates = f"{n} replicate{'s' if n > 1 else ''}" + (
        f" and {analysis.num_cases} patients" if analysis.num_cases else ""
    )
    return "\n".join(
        [
            *conclusion_sentences(analysis),
            *(far_replicates(analysis) if analysis.far else []),
            "",
            f"Mean {analysis.metric} and its 95% interval over {replicates}:",
            "",
            *_table(["arm", *heads], means),
            "",
            f"Difference to “{analysis.reference}”, paired over {replicates}:",
            "",
            *_table(["arm", *heads], [row for row in differences if row[0] != analysis.reference]),
            "",
            *_next_endpoints(analysis),
            *_order(analysis),
        ]
    )


def _next_endpoints(analysis: Analysis) -> list[str]:
    lines: list[str] = []
    for place, one in enumerate(analysis.later, 2):
        rows = []
        for name, difference in one.differences.items():
            p = one.adjusted.get(name)
            rows.append(
                [name, with_interval(difference, sign=True), "not tested" if p is None else p_value(p)]
            )
        reason = f" Not tested: {one.why_not}." if one.why_not else ""
        lines += [
            f"Endpoint {place} of the preregistered order, {one.words}.{reason}",
            "",
            *_table(["arm", "difference", "p"], rows),
            "",
        ]
    return lines


def _order(analysis: Analysis) -> list[str]:
    order = analysis.order
    if order is None:
        return []
    rows = [
        [
            arm.name,
            number(order.best[k], digits=2),
            number(order.rank[k], digits=1),
            f"{order.low[k]:.0f} to {order.high[k]:.0f}",
        ]
        for k, arm in enumerate(analysis.arms)
    ]
    head = ["arm", "probability of being best", "mean rank", "ranks, 95%"]
    return [
        "The order of the arms under resampling of replicates and cases (exploratory):",
        "",
        *_table(head, rows),
        "",
    ]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = ([cell.replace("|", "\\|") for cell in row] for row in (head, ["---"] * len(head), *rows))
    return [f"| {' | '.join(line)} |" for line in lines]

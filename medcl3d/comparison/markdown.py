"""The numbers of a comparison as a Markdown table: for a terminal, and for a page of results."""

from __future__ import annotations

from medcl3d.comparison.analysis import Analysis
from medcl3d.comparison.answer import answer, with_interval


def markdown(analysis: Analysis) -> str:
    """The answer in two sentences, then one table of means and one of paired differences, each with its 95% interval."""
    heads = [", ".join(f"{key} {value}" for key, value in cell) or "all" for cell in analysis.cells]
    means = [[arm.name, *(with_interval(arm.cells[cell].mean) for cell in analysis.cells)] for arm in analysis.arms]
    differences = []
    for arm in analysis.arms:
        cells = [arm.cells[cell].difference for cell in analysis.cells]
        differences.append([arm.name, *(with_interval(cell, sign=True) for cell in cells if cell is not None)])
    replicates = f"{len(analysis.replicates)} replicates" + (f" and {analysis.num_cases} patients" if analysis.num_cases else "")
    return "\n".join(
        [
            *answer(analysis),
            "",
            f"Mean {analysis.metric} and its 95% interval over {replicates}:",
            "",
            *_table(["arm", *heads], means),
            "",
            f"Difference to “{analysis.reference}”, paired over {replicates}:",
            "",
            *_table(["arm", *heads], [row for row in differences if row[0] != analysis.reference]),
            "",
        ]
    )


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = ([cell.replace("|", "\\|") for cell in row] for row in (head, ["---"] * len(head), *rows))
    return [f"| {' | '.join(line)} |" for line in lines]

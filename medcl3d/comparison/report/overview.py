"""The report of a comparison in which nothing can be compared yet: incomplete arms and runs, with reasons."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medcl3d.comparison.analysis.compared_arms import Gaps
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.report.page import write_page


def write_overview(
    path: Path, gaps: Gaps, config: CompareConfig, title: str, command: str, notes: Sequence[str]
) -> str:
    """Write the page to `path`, atomically, and return its conclusion."""
    without = {one.name for one in gaps.arms if not one.complete}
    with_some = [name for name in config.arms if name not in without]
    names = ", ".join(f"“{name}”" for name in with_some)
    known = f"complete replicates exist of {names} only" if with_some else "no arm has a complete replicate"
    needed = f"of the reference “{config.reference}” and of another arm"
    conclusion = f"No conclusion: {known}, and a comparison needs one {needed}."
    content = {"gaps": gaps, "metric": config.metric, "title": title, "command": command}
    write_page(path, "overview.html.j2", {**content, "notes": notes, "conclusion": conclusion})
    return conclusion

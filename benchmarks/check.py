"""Compare speed-ups over other libraries with those of an earlier run; `make benchmark-check` runs it.

    python benchmarks/check.py docs/results/performance.json loss_peers pipeline

Only ratios of alternated turns are compared, since times depend on the machine. A ratio is lower if its whole
interval is below the earlier one and its mean below `TOLERANCE` of the earlier mean. Exits with 1 if one is.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

TOLERANCE = 0.9
"""A ratio may be a tenth lower: ratios of two runs on one busy machine differ by some percent."""
RATIO = re.compile(r"([\d.]+) \(([\d.]+) to ([\d.]+)\)")


def ratios(table: Mapping[str, Any]) -> dict[tuple[str, ...], tuple[float, float, float]]:
    """Mean, low and high of the last column, if it holds speed-ups, by the other text of the row."""
    if not table["columns"][-1].startswith("speed-up"):
        return {}
    words = [i for i, name in enumerate(table["columns"][:-1]) if not re.search("second|ms|MB", name)]
    found = {tuple(row[i] for i in words): RATIO.fullmatch(row[-1]) for row in table["rows"]}
    return {
        name: (float(match[1]), float(match[2]), float(match[3])) for name, match in found.items() if match
    }


def slower(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each ratio of a table that is lower than before."""
    known = ratios(before)
    return [
        f"{now['title']}: {', '.join(name)}: {mean:g} ({low:g} to {high:g}), before {known[name][0]:g} "
        f"({known[name][1]:g} to {known[name][2]:g})"
        for name, (mean, low, high) in ratios(now).items()
        if name in known and high < known[name][1] and mean < TOLERANCE * known[name][0]
    ]


def main(committed: str, *names: str) -> None:
    """Run benchmarks and compare their ratios with those of a file."""
    from benchmarks import benchmark

    if not Path(committed).is_file():
        sys.exit(f"{committed}: not a file; `make benchmark` writes it")
    before = {table["title"]: table for table in json.loads(Path(committed).read_text())["tables"]}
    tables = [asdict(table) for table in benchmark(names)]
    lines = [
        line for table in tables if table["title"] in before for line in slower(before[table["title"]], table)
    ]
    print("\n".join(lines) or "no ratio is lower than before")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])

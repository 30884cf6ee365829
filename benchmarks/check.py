"""Compare speed-ups over other libraries with those of an earlier run; `make benchmark-check` runs it.

    python benchmarks/check.py docs/results/performance.json loss_peers pipeline

Only ratios of alternated turns are compared, since times depend on the machine. A ratio is lower if its whole
interval is below the earlier one and its mean below `TOLERANCE` of the earlier mean. Runs of one commit may
differ by more than the intervals over their turns, so a benchmark with a lower ratio is repeated, and only
ratios that are lower in both runs count. Exits with 1 if there is one.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
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


def slower(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Row -> how much lower its ratio is than before, for the rows of a table whose ratio is."""
    known = ratios(before)
    return {
        f"{now['title']}: {', '.join(name)}": f"{mean:g} ({low:g} to {high:g}), before {known[name][0]:g} "
        f"({known[name][1]:g} to {known[name][2]:g})"
        for name, (mean, low, high) in ratios(now).items()
        if name in known and high < known[name][1] and mean < TOLERANCE * known[name][0]
    }


def slower_twice(measure: Callable[[], dict[str, str]]) -> list[str]:
    """Lines on the rows that are lower in two measurements; the second only if there are any in the first."""
    first = measure()
    if not first:
        return []
    print("\n".join(f"{row}: {lower}; measured again" for row, lower in first.items()), flush=True)
    second = measure()
    return [f"{row}: {first[row]}, and {second[row]}" for row in first if row in second]


def main(committed: str, *names: str) -> None:
    """Run benchmarks and compare their ratios with those of a file."""
    from benchmarks import benchmark

    if not Path(committed).is_file():
        sys.exit(f"{committed}: not a file; `make benchmark` writes it")
    before = {table["title"]: table for table in json.loads(Path(committed).read_text())["tables"]}

    def measure(name: str) -> dict[str, str]:
        lower: dict[str, str] = {}
        for table in map(asdict, benchmark((name,))):
            lower |= slower(before[table["title"]], table) if table["title"] in before else {}
        return lower

    lines = [line for name in names for line in slower_twice(partial(measure, name))]
    print("\n".join(lines) or "no ratio is lower than before")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])

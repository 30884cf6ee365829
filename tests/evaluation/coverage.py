"""Coverage of nominal 95% intervals, measured on simulated comparisons with few replicates.

`python -m tests.evaluation.coverage` repeats the simulation and prints the tables of
docs/concepts/statistics.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medcl3d.evaluation.statistics.coverage import CASES, MEASURED
from medcl3d.evaluation.statistics.crossed import Estimate, over_replicates, over_replicates_and_cases

Spread = tuple[float, float, float]
"""Standard deviations of replicate, case and residual."""

SPREADS: dict[str, Spread] = {
    "replicates vary": (1.0, 0.2, 1.0),
    "cases vary": (0.2, 1.0, 1.0),
    "both vary": (1.0, 1.0, 1.0),
    "little but residual": (0.1, 0.1, 1.0),
    "both vary, small residual": (1.0, 1.0, 0.3),
}
REPLICATES = (2, 3, 4, 5, 6, 10)
NUM_CASES = 40
REPETITIONS = 4000
COLLAPSED = 0.1
"""Fraction of the runs of one arm that collapse, in `with_collapses`."""
COLLAPSE_REPLICATES = (6, 10, 20)
FALLS = (0.0, 3.0, 5.0, 10.0, 20.0)
"""Decrease of a collapsed run, in standard deviations of the other differences."""


def simulated(
    num: int, num_replicates: int, num_cases: int, spread: Spread, rng: np.random.Generator, mean: float = 0.0
) -> np.ndarray:
    """Differences ``[num, R, C]`` of crossed replicates and cases, with a true `mean`."""
    replicate, case, residual = spread
    of_replicate = replicate * rng.normal(size=(num, num_replicates, 1))
    of_case = case * rng.normal(size=(num, 1, num_cases))
    return mean + of_replicate + of_case + residual * rng.normal(size=(num, num_replicates, num_cases))


def coverage(estimate: Estimate, truth: float = 0.0) -> float:
    """The fraction of simulated comparisons whose 95% interval contains the true value."""
    low, high = estimate.limits()
    return float(((low <= truth) & (truth <= high)).mean())


def measure(num_replicates: int, num_cases: int = NUM_CASES, repetitions: int = REPETITIONS) -> list[float]:
    """Coverage in percent for each of SPREADS, with fixed seeds."""
    found = []
    for index, spread in enumerate(SPREADS.values()):
        rng = np.random.default_rng([num_replicates, index])
        values = simulated(repetitions, num_replicates, num_cases, spread, rng)
        found.append(100 * coverage(over_replicates_and_cases(values)))
    return found


def table(repetitions: int = REPETITIONS) -> str:
    """Markdown table of coverage for all SPREADS, with NUM_CASES cases."""
    rows = [["replicates", *SPREADS, "lowest to highest"], ["---"] * (len(SPREADS) + 2)]
    for num in REPLICATES:
        found = measure(num, repetitions=repetitions)
        rows.append([str(num), *(f"{value:.1f}" for value in found), f"{min(found):.1f} to {max(found):.1f}"])
    return _markdown(rows)


def table_of_cases() -> str:
    """Markdown table of the lowest and highest coverage for few and many cases, from MEASURED."""
    rows = [["replicates", *(f"{cases} cases" for cases in CASES)], ["---"] * (len(CASES) + 1)]
    for num in REPLICATES:
        rows.append([str(num), *("{:.1f} to {:.1f}".format(*MEASURED[num, cases]) for cases in CASES)])
    return _markdown(rows)


def with_collapses(
    num: int, num_replicates: int, fall: float, rng: np.random.Generator, share: float = COLLAPSED
) -> np.ndarray:
    """Differences ``[num, R]`` of true mean 0; a `share` of values with deviation 1 is lowered by `fall`."""
    fell = rng.random((num, num_replicates)) < share
    return rng.normal(size=(num, num_replicates)) - fall * fell + fall * share


def rejected(num_replicates: int, fall: float, repetitions: int = 5 * REPETITIONS) -> tuple[float, float]:
    """Percent of null comparisons reported as better, and as worse, at 5%, if runs of one arm collapse."""
    found = over_replicates(
        with_collapses(repetitions, num_replicates, fall, np.random.default_rng([num_replicates, int(fall)]))
    )
    small = found.p_value() < 0.05
    return 100 * float((small & (found.mean > 0)).mean()), 100 * float((small & (found.mean < 0)).mean())


def table_of_collapses() -> str:
    """Markdown table of the level of tests if 10% of the runs of one arm collapse."""
    rows = [
        ["fall of a run that collapses", *(f"{num} replicates" for num in COLLAPSE_REPLICATES)],
        ["---"] * (len(COLLAPSE_REPLICATES) + 1),
    ]
    for fall in FALLS:
        shares = [rejected(num, fall) for num in COLLAPSE_REPLICATES]
        rows.append(
            [
                f"{fall:.0f}",
                *(f"{better + worse:.1f} ({better:.1f} + {worse:.1f})" for better, worse in shares),
            ]
        )
    return _markdown(rows)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    print(table())
    print(table_of_cases())
    print(table_of_collapses())

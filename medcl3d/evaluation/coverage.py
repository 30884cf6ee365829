"""How often a nominal 95% interval holds the truth, measured on simulated comparisons of few replicates.

`python -m medcl3d.evaluation.coverage` measures it again and prints the table of docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medcl3d.evaluation.crossed import Estimate, over_replicates_and_cases

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

MEASURED: dict[int, tuple[float, float]] = {
    2: (87.4, 100.0),
    3: (92.0, 99.9),
    4: (93.3, 99.6),
    5: (94.0, 99.0),
    6: (93.9, 95.3),
    10: (94.4, 95.5),
}
"""Replicates -> the lowest and highest coverage over SPREADS with 40 cases, in percent; a test measures them again."""


def simulated(num: int, num_replicates: int, num_cases: int, spread: Spread, rng: np.random.Generator, mean: float = 0.0) -> np.ndarray:
    """Differences ``[num, R, C]`` of comparisons whose replicates and cases are crossed, with a true `mean`."""
    replicate, case, residual = spread
    of_replicate = replicate * rng.normal(size=(num, num_replicates, 1))
    of_case = case * rng.normal(size=(num, 1, num_cases))
    return mean + of_replicate + of_case + residual * rng.normal(size=(num, num_replicates, num_cases))


def coverage(estimate: Estimate, truth: float = 0.0) -> float:
    """The share of simulated comparisons whose 95% interval holds the truth."""
    low, high = estimate.limits()
    return float(((low <= truth) & (truth <= high)).mean())


def measure(num_replicates: int, spreads: Sequence[Spread] = tuple(SPREADS.values()), repetitions: int = REPETITIONS) -> list[float]:
    """Coverage in percent for each of the spreads, from one seed."""
    found = []
    for index, spread in enumerate(spreads):
        rng = np.random.default_rng([num_replicates, index])
        values = simulated(repetitions, num_replicates, NUM_CASES, spread, rng)
        found.append(100 * coverage(over_replicates_and_cases(values)))
    return found


def covered(num_replicates: int) -> tuple[int, float, float] | None:
    """The largest measured number of replicates up to this one, and its coverage in percent, lowest and highest; None for one."""
    known = [num for num in MEASURED if num <= num_replicates]
    return (max(known), *MEASURED[max(known)]) if known else None


def table(repetitions: int = REPETITIONS) -> str:
    """The Markdown table of all settings."""
    rows = [["replicates", *SPREADS, "lowest to highest"], ["---"] * (len(SPREADS) + 2)]
    for num in REPLICATES:
        found = measure(num, repetitions=repetitions)
        rows.append([str(num), *(f"{value:.1f}" for value in found), f"{min(found):.1f} to {max(found):.1f}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    print(table())

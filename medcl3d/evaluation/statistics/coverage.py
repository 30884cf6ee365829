"""Coverage of nominal 95% intervals, measured on simulated comparisons with few replicates."""

from __future__ import annotations

CASES = (2, 5, 10, 40)
_GRID = {
    2: ((99.0, 99.9), (94.4, 99.9), (89.8, 100.0), (87.4, 100.0)),
    3: ((97.2, 99.9), (95.9, 100.0), (93.8, 99.9), (92.0, 99.9)),
    4: ((95.3, 99.6), (95.4, 99.8), (94.6, 99.9), (93.3, 99.6)),
    5: ((93.3, 99.5), (95.5, 99.6), (94.7, 99.5), (94.0, 99.0)),
    6: ((88.9, 96.7), (94.7, 96.5), (94.9, 96.3), (93.9, 95.3)),
    10: ((88.4, 96.2), (94.4, 96.0), (94.8, 95.7), (94.4, 95.5)),
}
MEASURED = {(num, cases): ends for num, row in _GRID.items() for cases, ends in zip(CASES, row, strict=True)}
"""Replicates and cases -> lowest and highest coverage in percent over kinds of spread, which
tests/evaluation/coverage.py simulates; a test repeats it."""


def covered(num_replicates: int, num_cases: int) -> tuple[int, int, float, float] | None:
    """The largest measured numbers of replicates and cases up to these, and the range of coverage in percent.

    None for one replicate or one case.
    """
    known = [(num, cases) for num, cases in MEASURED if num <= num_replicates and cases <= num_cases]
    return (*max(known), *MEASURED[max(known)]) if known else None

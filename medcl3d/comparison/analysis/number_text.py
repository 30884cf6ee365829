"""Numbers, intervals and p-values as text."""

from __future__ import annotations

import math

from medcl3d.evaluation.statistics.intervals import Interval

MOST_DECIMALS = 8


def number(value: float, sign: bool = False, digits: int | None = None) -> str:
    """A value with a typographic minus; three decimals, fewer for large values, more if three show 0."""
    if digits is None:
        digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
        digits = max(digits, _decimals(abs(value)))
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def _decimals(size: float) -> int:
    """Decimals that show two digits of a value below 0.001; 0 for larger values and for 0."""
    return min(MOST_DECIMALS, math.ceil(-math.log10(size)) + 1) if 0 < size < 0.001 else 0


def numbers(interval: Interval, sign: bool = False) -> list[str]:
    """Mean, low and high, with more decimals for a narrow interval; only the mean if it is unknown."""
    if not interval.known:
        return [number(interval.mean, sign)]
    finer = _decimals((interval.high - interval.low) / 2) or None
    return [
        number(value, sign, finer or (3 if abs(value) < 0.001 else None))
        for value in (interval.mean, interval.low, interval.high)
    ]


def with_interval(interval: Interval, sign: bool = False) -> str:
    """``0.712 [0.690, 0.734]``, or the mean alone if the interval is unknown."""
    mean, *limits = numbers(interval, sign)
    return f"{mean} [{', '.join(limits)}]" if limits else mean


def p_value(p: float) -> str:
    """``p = 0.012`` or ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"

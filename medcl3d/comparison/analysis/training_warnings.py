"""Warnings about arms that are probably undertrained: by their endpoint, and by their curves at the end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medcl3d.comparison.analysis.analysis import Analysis
from medcl3d.comparison.analysis.number_text import number
from medcl3d.comparison.plan.runs import Run
from medcl3d.comparison.run.timing import metric_rows

UNTRAINED = {"dice": 0.2, "auroc": 0.55}
"""Metric -> value below which a network is hardly better than an untrained one (0 and 0.5)."""
FEWEST_ROWS, STILL = 8, 0.2
"""Logged rows of a curve, and the share of its change in its last quarter from which it still changes.
A curve that falls like 1 / sqrt(step) has a share of about 0.1, a straight line of a third."""


def training_warnings(analysis: Analysis, runs: Sequence[Run]) -> list[str]:
    """One sentence per kind of warning, with the arms or pretrainings that it is about."""
    limit = UNTRAINED.get(analysis.metric.split("/")[0])
    means = {arm.name: arm.endpoint.mean.mean for arm in analysis.arms}
    low = [f"“{name}” ({number(mean)})" for name, mean in means.items() if limit and mean < limit]
    found = []
    if low:
        near = f"{analysis.metric} of {', '.join(low)} is close to that of an untrained network"
        found.append(f"{near}: the arms may be undertrained, and more train.steps may change their order.")
    for what, measures in (("pretraining", False), ("fine-tuning", True)):
        named = [run for run in runs if run.measures is measures]
        names = [name for name in dict.fromkeys(run.name for run in named) if _still(named, name)]
        if names:
            of = ", ".join(f"“{name}”" for name in names)
            still = f"At its end, the {what} of {of} still improves"
            found.append(f"{still}: more train.steps may change the order of the arms.")
    return found


def _still(runs: Sequence[Run], name: str) -> bool:
    """Whether most of the curves of an arm or pretraining still change at their end."""
    shares = [share for run in runs if run.name == name and (share := last_share(_curve(run))) is not None]
    return bool(shares) and float(np.median(shares)) > STILL


def _curve(run: Run) -> list[float]:
    """The score of the online probe if it was logged, otherwise the loss."""
    rows = metric_rows(run.folder)
    probes = sorted({name for row in rows for name in row if name.startswith("probe")})
    key = probes[0] if probes else "loss"
    return [row[key] for row in rows if key in row]


def last_share(curve: Sequence[float]) -> float | None:
    """The share of a curve's change from its first to its last quarter that is between the last two quarters.

    None for short or undefined curves, and if the change is not clear from the noise of its quarters.
    """
    if len(curve) < FEWEST_ROWS or not np.isfinite(curve).all():
        return None
    quarters = np.array_split(np.asarray(curve), 4)
    means = [float(part.mean()) for part in quarters]
    noise = np.sqrt(sum(part.var(ddof=1) / len(part) for part in quarters[2:]))
    whole, last = means[3] - means[0], means[3] - means[2]
    if not whole or abs(last) < 2 * noise:
        return None
    return last / whole

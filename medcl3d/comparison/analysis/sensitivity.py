"""Sensitivity analysis: the conclusion without replicates that are far from their arm's others."""

from __future__ import annotations

from itertools import groupby

from medcl3d.comparison.analysis.analysis import Analysis, FarReplicate
from medcl3d.comparison.analysis.conclusion import conclusion_sentences
from medcl3d.comparison.analysis.number_text import number
from medcl3d.evaluation.statistics.outliers import MIN_REPLICATES, limit


def rule(num_replicates: int) -> str:
    """The rule by which a replicate is flagged, as text."""
    return (
        f"more than {limit(num_replicates):.3g} scaled median absolute deviations from the median of its arm"
    )


def far_replicates(analysis: Analysis) -> list[str]:
    """Sentences on flagged replicates, and the conclusion without them; empty for too few replicates."""
    n = len(analysis.replicates)
    if n < MIN_REPLICATES:
        return []
    if not analysis.far:
        return [f"No replicate is far from the others of its arm at the endpoint (none is {rule(n)})."]
    by_seed = {seed: list(of) for seed, of in groupby(analysis.far, key=lambda one: one.seed)}
    flagged = "; ".join(f"replicate {seed} in {_in_arms(analysis, of)}" for seed, of in by_seed.items())
    several = len(by_seed) > 1
    kept = f"The conclusion includes {'them' if several else 'it'}."
    sentences = [f"Far from the others of their arm at the endpoint ({rule(n)}): {flagged}. {kept}"]
    without = f"Without replicate{'s' if several else ''} {', '.join(map(str, by_seed))}, in all arms"
    if analysis.without is None:
        return [*sentences, f"{without}, no replicate remains."]
    return [
        *sentences,
        f"{without}, the conclusion would be: {' '.join(conclusion_sentences(analysis.without))}",
    ]


def _in_arms(analysis: Analysis, of: list[FarReplicate]) -> str:
    """Arms with their values; "every arm" if all are flagged, since the replicate as a whole is then far."""
    shown = ", ".join(f"“{one.arm}” ({number(one.value)}, median {number(one.median)})" for one in of)
    return f"every arm: {shown}" if len(of) == len(analysis.arms) else shown

"""The conclusion without replicates that lie far from their arm's others; the first one keeps them all."""

from __future__ import annotations

from itertools import groupby

from medcl3d.comparison.analysis import Analysis, FarReplicate
from medcl3d.comparison.answer import answer, number
from medcl3d.evaluation.outliers import MIN_REPLICATES, limit


def rule(num_replicates: int) -> str:
    """By which rule a replicate is flagged, in words."""
    return f"more than {limit(num_replicates):.3g} scaled median absolute deviations from the median of its arm"


def far_replicates(analysis: Analysis) -> list[str]:
    """Sentences: which replicates are flagged, and the conclusion without them; none if there are too few to tell."""
    n = len(analysis.replicates)
    if n < MIN_REPLICATES:
        return []
    if not analysis.far:
        return [f"No replicate is far from the others of its arm at the endpoint (none is {rule(n)})."]
    by_seed = {seed: list(of) for seed, of in groupby(analysis.far, key=lambda one: one.seed)}
    flagged = "; ".join(f"replicate {seed} in {_in_arms(analysis, of)}" for seed, of in by_seed.items())
    several = len(by_seed) > 1
    kept = f"The conclusion keeps {'them' if several else 'it'}."
    said = [f"Far from the others of their arm at the endpoint ({rule(n)}): {flagged}. {kept}"]
    without = f"Without replicate{'s' if several else ''} {', '.join(map(str, by_seed))}, in all arms"
    if analysis.without is None:
        return [*said, f"{without} nothing is left."]
    return [*said, f"{without}, the conclusion would be: {' '.join(answer(analysis.without))}"]


def _in_arms(analysis: Analysis, of: list[FarReplicate]) -> str:
    """Arms with their values; all arms together if each is flagged, since then the replicate is far and not an arm."""
    shown = ", ".join(f"“{one.arm}” ({number(one.value)}, median {number(one.median)})" for one in of)
    return f"every arm: {shown}" if len(of) == len(analysis.arms) else shown

"""Agreement of scores of encoders and pairs with the endpoint: rank correlation, best encoder by each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from medcl3d.comparison.analysis.embedding_maps import DIRECTIONS, Scores
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.evaluation.statistics.intervals import Interval

FEWEST_ENCODERS = 4
"""The interval of a rank correlation needs n - 3 > 0 encoders."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of one score with the endpoint, over the encoders that have the score.

    correlation  Spearman's, between the score (signed so that larger is better) and the
        endpoint: within each replicate, then averaged; its interval is over other encoders (`rank_interval`)
    pick, place  the encoder with the best mean score over replicates, and its rank by the endpoint among all
                 (1: best)
    """

    correlation: Interval
    pick: str
    place: int


@dataclass(frozen=True)
class ScoreAgreement:
    """Agreement of all scores, by score. order: pretrainings, best at the endpoint first."""

    order: tuple[str, ...]
    by_score: dict[str, Agreement]


def score_agreement(
    found: Scores, config: CompareConfig, endpoint: Mapping[str, Sequence[float]], higher: bool
) -> ScoreAgreement | None:
    """Compare every score with the endpoint of the first arm that starts from each encoder; None for too few
    encoders.

    endpoint: arm -> one number per replicate, in the order of the seeds.
    """
    arm_of: dict[str, str] = {}
    for name, arm in config.arms.items():
        if arm.pretraining in found:
            arm_of.setdefault(arm.pretraining, name)
    sign = 1.0 if higher else -1.0
    gains = {encoder: sign * np.asarray(endpoint[arm], dtype=float) for encoder, arm in arm_of.items()}
    by_score = {score: one for score in DIRECTIONS if (one := _agreement(score, found, gains)) is not None}
    order = tuple(sorted(gains, key=lambda encoder: -gains[encoder].mean()))
    return ScoreAgreement(order, by_score) if by_score else None


def _agreement(score: str, found: Scores, gains: Mapping[str, np.ndarray]) -> Agreement | None:
    names = [name for name in gains if all(score in values for values in found[name].values())]
    if len(names) < FEWEST_ENCODERS:
        return None
    scores = np.array(
        [[better(score, values[score]) for _, values in sorted(found[name].items())] for name in names]
    )
    endpoints = np.array([gains[name] for name in names])
    varying = [k for k in range(scores.shape[1]) if np.ptp(scores[:, k]) > 0 and np.ptp(endpoints[:, k]) > 0]
    if not varying:
        return None
    correlation = float(np.mean([stats.spearmanr(scores[:, k], endpoints[:, k]).statistic for k in varying]))
    pick = names[int(scores.mean(1).argmax())]
    place = 1 + sum(one.mean() > gains[pick].mean() for one in gains.values())
    return Agreement(rank_interval(correlation, len(names)), pick, place)


def better(score: str, value: float) -> float:
    """A score with its sign chosen so that larger is what its authors call better."""
    return {"lower": -value, "higher": value, "nearer to 1": -abs(value - 1)}[DIRECTIONS[score]]


def rank_interval(correlation: float, num: int, confidence: float = 0.95) -> Interval:
    """A rank correlation over `num` encoders with its interval over other encoders, within [-1, 1].

    Fisher's z with the variance (1 + r^2 / 2) / (num - 3) (Bonett and Wright, Psychometrika 2000). The
    correlation of few encoders is discrete, and z of a perfect order is infinite: r is moved inside by half a
    step, 6 / (num^3 - num). Averaging over replicates of the same encoders does not shorten the interval, so
    it covers the true value at least as often as its nominal level (docs/concepts/statistics.md).
    ValueError for fewer than four.
    """
    if num < FEWEST_ENCODERS:
        raise ValueError(
            f"a rank correlation of {num} encoders has no interval; at least {FEWEST_ENCODERS} are needed"
        )
    inside = 1 - 6 / (num**3 - num)
    r = float(np.clip(correlation, -inside, inside))
    half = float(stats.norm.ppf((1 + confidence) / 2)) * np.sqrt((1 + r**2 / 2) / (num - 3))
    low, high = (float(np.tanh(np.arctanh(r) + side * half)) for side in (-1, 1))
    return Interval(correlation, min(low, correlation), max(high, correlation), num)


def verdict(found: ScoreAgreement, metric: str) -> list[str]:
    """Sentences: which scores select the best encoder, and which are shown to order the encoders."""
    best, count = found.order[0], len(found.order)
    right = [score for score, one in found.by_score.items() if one.pick == best]
    ordering = [score for score, one in found.by_score.items() if one.correlation.low > 0]
    what = f"the encoder with the best mean {metric}, “{best}”"
    those = f"{_list(right)} ({len(right)} of {len(found.by_score)} scores)" if right else "No score"
    return [
        f"{those} would have selected {what}; a random choice does so in one of {count} cases.",
        f"{_list(ordering)} ordered the encoders as {metric} did (interval above 0), which suggests the "
        "same for other encoders."
        if ordering
        else f"No score is shown to order encoders as {metric} does: no interval is above 0.",
    ]


def _list(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]

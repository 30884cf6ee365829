"""Whether scores without labels told which encoder is best: how each orders the encoders, and which one it would have picked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from medcl3d.comparison.config import CompareConfig
from medcl3d.comparison.portraits import Scores
from medcl3d.evaluation.label_free import BETTER
from medcl3d.evaluation.statistics import Interval

FEWEST_ENCODERS = 4
"""Of fewer, an order says nothing, and the interval has no width."""


@dataclass(frozen=True)
class Agreement:
    """One score beside the endpoint, over the encoders that have it.

    correlation  Spearman's between the score, turned so that larger is what its authors call better, and the endpoint: within each
                 replicate, then averaged; its interval is of other encoders (`rank_interval`)
    pick, place  the encoder that the score's mean over replicates calls best, and its place by the endpoint among all, 1 the best
    """

    correlation: Interval
    pick: str
    place: int


@dataclass(frozen=True)
class Told:
    """What scores told of encoders. order: pretrainings, best at the endpoint first; by_score: score -> how it agrees."""

    order: tuple[str, ...]
    by_score: dict[str, Agreement]


def told(found: Scores, config: CompareConfig, endpoint: Mapping[str, Sequence[float]], higher: bool) -> Told | None:
    """How every score goes with the endpoint of the first arm that starts from an encoder; None of too few encoders.

    endpoint: arm -> one number a replicate, in the order of the seeds.
    """
    arm_of: dict[str, str] = {}
    for name, arm in config.arms.items():
        if arm.pretraining in found:
            arm_of.setdefault(arm.pretraining, name)
    gains = {encoder: (1 if higher else -1) * np.asarray(endpoint[arm], dtype=float) for encoder, arm in arm_of.items()}
    by_score = {score: one for score in BETTER if (one := _agreement(score, found, gains)) is not None}
    return Told(tuple(sorted(gains, key=lambda encoder: -gains[encoder].mean())), by_score) if by_score else None


def _agreement(score: str, found: Scores, gains: Mapping[str, np.ndarray]) -> Agreement | None:
    names = [name for name in gains if all(score in values for values in found[name].values())]
    if len(names) < FEWEST_ENCODERS:
        return None
    said = np.array([[better(score, values[score]) for _, values in sorted(found[name].items())] for name in names])
    was = np.array([gains[name] for name in names])
    ordered = [column for column in range(said.shape[1]) if np.ptp(said[:, column]) > 0 and np.ptp(was[:, column]) > 0]
    if not ordered:
        return None
    correlation = float(np.mean([stats.spearmanr(said[:, column], was[:, column]).statistic for column in ordered]))
    pick = names[int(said.mean(1).argmax())]
    place = 1 + sum(one.mean() > gains[pick].mean() for one in gains.values())
    return Agreement(rank_interval(correlation, len(names)), pick, place)


def better(score: str, value: float) -> float:
    """A score with its sign so that larger is what its authors take for better."""
    return {"lower": -value, "higher": value, "nearer to 1": -abs(value - 1)}[BETTER[score]]


def rank_interval(correlation: float, num: int, confidence: float = 0.95) -> Interval:
    """A rank correlation over `num` encoders with the interval of such a correlation over other encoders, within [-1, 1].

    Fisher's z with the variance (1 + r^2 / 2) / (num - 3) (Bonett and Wright, Psychometrika 2000). Orders of few things jump, and
    of a perfect one z is infinite: r is taken half a jump, 6 / (num^3 - num), inside. Replicates of the same encoders
    that were averaged make it no shorter, so that it holds the truth at least as often as it says (docs/statistics.md).
    ValueError of fewer than four.
    """
    if num < FEWEST_ENCODERS:
        raise ValueError(f"a rank correlation of {num} things has no interval; {FEWEST_ENCODERS} or more have")
    inside = 1 - 6 / (num**3 - num)
    r = float(np.clip(correlation, -inside, inside))
    half = float(stats.norm.ppf((1 + confidence) / 2)) * np.sqrt((1 + r**2 / 2) / (num - 3))
    low, high = (float(np.tanh(np.arctanh(r) + side * half)) for side in (-1, 1))
    return Interval(correlation, min(low, correlation), max(high, correlation), num)


def verdict(found: Told, metric: str) -> list[str]:
    """In words: did a score pick the best encoder, and is one shown to order them?"""
    best, count = found.order[0], len(found.order)
    right = [score for score, one in found.by_score.items() if one.pick == best]
    ordering = [score for score, one in found.by_score.items() if one.correlation.low > 0]
    what = f"the encoder with the best mean {metric}, “{best}”"
    those = f"{_list(right)} ({len(right)} of {len(found.by_score)} scores)" if right else "No score"
    return [
        f"{those} would have picked {what}; a pick at random does in one of {count} cases.",
        f"{_list(ordering)} ordered the encoders as {metric} did, by an interval above 0: a hint that it would order others so."
        if ordering
        else f"No score is shown to order encoders as {metric} does: no interval lies above 0.",
    ]


def _list(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]

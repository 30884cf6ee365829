"""What there is to say of the pairs of one batch: who attracts whom, and how far apart the pairs of a sample lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medcl3d.data.loader import make_views
from medcl3d.data.raw_batch import RawBatch
from medcl3d.objectives.dense import point_keys
from medcl3d.objectives.relating import Relating
from medcl3d.pairs.boxes import iou_mm
from medcl3d.training.diagnostics import counts
from medcl3d.types import Keys, Relation

MAX_POINTS = 96


@dataclass(frozen=True)
class PairFacts:
    """One batch, as its strategy relates it before any training.

    what      "views" or "points"
    names     ``sample.view`` (or ``sample.view.point``) of each thing
    keys      of each thing
    relation  of all things with all, ``[N, N]``
    counts    as they are logged at every step
    spread    title -> a value a pair of views of one sample: IoU, mm between centres (in the body across frames), days
    """

    what: str
    names: tuple[str, ...]
    keys: Keys
    relation: Relation
    counts: dict[str, float]
    spread: dict[str, np.ndarray]

    def lines(self) -> list[str]:
        """The counts as lines of text."""
        words = {
            "positives_per_anchor": "positives per anchor",
            "anchors_without_positive": "anchors without a positive",
            "effective_negatives": "effective negatives",
            "fraction_left_alone": "fraction left alone",
            "mean_positive": "mean P",
            "mean_negative": "mean M",
        }
        return [
            f"{f'{self.what} in the batch':<28}{len(self.names)}",
            *(f"{text:<28}{self.counts[key]:.3g}" for key, text in words.items()),
        ]


def facts_of(raw: RawBatch, relating: Relating, recipe: object) -> PairFacts:
    """The facts of this rank's batch, asking no other. What a strategy links to features is left out: there are none yet."""
    views = raw.keys
    things, what = views, "views"
    if raw.points is not None:
        things, what = point_keys(make_views(raw, recipe).main, raw.points), "points"
        valid = torch.isfinite(things.position_mm).all(1).nonzero().flatten()
        # Whole points: those with the smallest numbers of every sample, in all views.
        per_view = max(1, MAX_POINTS // len(raw.main.keys))
        things = things[valid[things.point[valid] < per_view]]
    relation = relating.relate(things, things, None)
    columns = ("sample", "view") if what == "views" else ("sample", "view", "point")
    names = tuple(".".join(str(int(getattr(things, column)[i])) for column in columns) for i in range(len(things)))
    counted = {name: float(value) for name, value in counts(relation, total=lambda sums: sums).items()}
    return PairFacts(what, names, things, relation, counted, spread_of(views))


def spread_of(keys: Keys) -> dict[str, np.ndarray]:
    """How the pairs of views within a sample lie: IoU, mm and days; empty where that means nothing."""
    first, second = torch.triu(keys.sample[:, None] == keys.sample, diagonal=1).nonzero().unbind(1)
    one_frame = keys.frame[first] == keys.frame[second]
    distance = torch.where(one_frame[:, None], keys.center_mm[first] - keys.center_mm[second], keys.body[first] - keys.body[second])
    gap = (keys.session_days[first] - keys.session_days[second]).abs()

    def numbers(values: Tensor) -> np.ndarray:
        return values[torch.isfinite(values)].numpy()

    return {
        "IoU": numbers(iou_mm(keys, keys)[first, second][one_frame]),
        "mm between centres": numbers(distance.norm(dim=1)),
        "days between visits": numbers(gap[keys.scan[first] != keys.scan[second]]),
    }

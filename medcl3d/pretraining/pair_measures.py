"""The relation of one batch, its counts, and the overlap and distance of views within samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation
from medcl3d.objectives.dense import point_keys
from medcl3d.objectives.diagnostics import counts
from medcl3d.objectives.relating import Relating
from medcl3d.pairs.boxes import iou_mm
from medcl3d.sampling.augment import make_views
from medcl3d.sampling.raw_batch import RawBatch

MAX_POINTS = 96


@dataclass(frozen=True)
class PairFacts:
    """The items of one batch and their relation, before any training.

    items     "views" or "points"
    names     ``sample.view`` (or ``sample.view.point``) of each item
    keys      keys of the items
    relation  relation of the items, ``[N, N]``
    counts    the counts that training logs
    spread    title -> one value per pair of views of one sample: IoU, mm between centres (body coordinates
              across frames), days
    """

    items: str
    names: tuple[str, ...]
    keys: Keys
    relation: Relation
    counts: dict[str, float]
    spread: dict[str, np.ndarray]

    def lines(self) -> list[str]:
        """The counts as lines of text."""
        labels = {
            "positives_per_anchor": "positives per anchor",
            "anchors_without_positive": "anchors without a positive",
            "effective_negatives": "effective negatives",
            "fraction_ignored": "fraction ignored",
            "mean_positive": "mean P",
            "mean_negative": "mean M",
        }
        return [
            f"{f'{self.items} in the batch':<28}{len(self.names)}",
            *(f"{text:<28}{self.counts[key]:.3g}" for key, text in labels.items()),
        ]


def facts_of(raw: RawBatch, relating: Relating, recipe: object) -> PairFacts:
    """The facts of this rank's batch, without communication and without features, which do not exist yet."""
    views = raw.keys
    keys, items = views, "views"
    if raw.points is not None:
        keys, items = point_keys(make_views(raw, recipe).main, raw.points), "points"
        valid = torch.isfinite(keys.position_mm).all(1).nonzero().flatten()
        # The first points of every sample, each in all views.
        per_view = max(1, MAX_POINTS // len(raw.main.keys))
        keys = keys[valid[keys.point[valid] < per_view]]
    relation = relating.relate(keys, keys, None)
    columns = ("sample", "view") if items == "views" else ("sample", "view", "point")
    names = tuple(
        ".".join(str(int(getattr(keys, column)[i])) for column in columns) for i in range(len(keys))
    )
    counted = {name: float(value) for name, value in counts(relation, total=lambda sums: sums).items()}
    return PairFacts(items, names, keys, relation, counted, spread_of(views))


def spread_of(keys: Keys) -> dict[str, np.ndarray]:
    """IoU, mm and days between the views of a sample; empty if undefined."""
    first, second = torch.triu(keys.sample[:, None] == keys.sample, diagonal=1).nonzero().unbind(1)
    one_frame = keys.frame[first] == keys.frame[second]
    distance = torch.where(
        one_frame[:, None],
        keys.center_mm[first] - keys.center_mm[second],
        keys.body[first] - keys.body[second],
    )
    gap = (keys.session_days[first] - keys.session_days[second]).abs()

    def numbers(values: Tensor) -> np.ndarray:
        return values[torch.isfinite(values)].numpy()

    return {
        "IoU": numbers(iou_mm(keys, keys)[first, second][one_frame]),
        "mm between centres": numbers(distance.norm(dim=1)),
        "days between visits": numbers(gap[keys.scan[first] != keys.scan[second]]),
    }

"""Results of a pair audit, and the weighted sums over pairs from which they are computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation
from medcl3d.evaluation.statistics.bootstrap import over_drawn_patients
from medcl3d.evaluation.statistics.intervals import Interval
from medcl3d.pretraining.pair_labels import Labels
from medcl3d.pretraining.pair_measures import PLACES, PairDistances, place_of_pairs

OTHER_PATIENTS = len(PLACES) - 1


@dataclass(frozen=True)
class PairAudit:
    """How well the pairs of a strategy agree with structures or classes, without training.

    With p_i the composition of item i (the fraction of its voxels in each structure; for a point, 1 for the
    structure at its voxel; for a class, 1 for the class), two items have in common s_ij = sum_k min(p_ik,
    p_jk) / sum_k p_ik over the structures k. Positives are weighted as in the contrastive loss,
    w_ij = min(1, sum_k P_ik) P_ij / sum_k P_ik; negatives by M_ij / sum_k M_ik. Anchors without a structure,
    and items of scans without a label map, are not counted.

    by               "structures", or a column of the manifest
    items            "views" or "points"
    batches          number of batches
    anchors          number of anchors with a known structure or class
    purity           mean s over the positive weight; an interval over patients, as all below
    purity_by_place  the same for pairs within a sample, within a scan, within and across patients (`PLACES`)
    weight_by_place  the fraction of the positive weight in each of `PLACES`
    false_negatives  mean s over the negative weight
    chance           mean s over all pairs of different patients
    positives, negatives  effective number per anchor, (sum w)^2 / sum w^2; mean over anchors
    per_structure    structure or class -> purity of the positive weight of its anchors
    patient_pairs    one row per pair of patients: summed weights, purity, false negatives
    distances        mm and IoU of the pairs
    notes            what was left out
    """

    by: str
    items: str
    batches: int
    anchors: int
    purity: Interval | None
    purity_by_place: dict[str, Interval]
    weight_by_place: dict[str, float]
    false_negatives: Interval | None
    chance: Interval | None
    positives: float
    negatives: float
    per_structure: dict[str, float]
    patient_pairs: pd.DataFrame
    distances: PairDistances
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The audit as lines of text."""
        rows = [
            ("purity of the positive weight", _text(self.purity)),
            *(
                (f"  {place}, {self.weight_by_place[place]:.0%} of the weight", _text(interval))
                for place, interval in self.purity_by_place.items()
            ),
            ("false negatives, share of the weight", _text(self.false_negatives)),
            ("any two items of different patients", _text(self.chance)),
            ("effective positives per anchor", f"{self.positives:.3g}"),
            ("effective negatives per anchor", f"{self.negatives:.3g}"),
        ]
        what = f"{self.by}, {self.items}, {self.anchors} anchors in {self.batches} batches"
        return [
            f"pair audit by {what}",
            *(f"{name:<52}{value}" for name, value in rows),
            *self.distances.lines(),
            *(f"note: {note}" for note in self.notes),
        ]

    def as_dict(self) -> dict[str, Any]:
        """The audit as JSON values, without the pairs of patients."""

        def interval(value: Interval | None) -> dict[str, float | int | None] | None:
            if value is None:
                return None
            limits = {k: v if np.isfinite(v) else None for k, v in (("low", value.low), ("high", value.high))}
            return {"mean": value.mean, **limits, "patients": value.n}

        distances = self.distances
        return {
            "by": self.by,
            "items": self.items,
            "batches": self.batches,
            "anchors": self.anchors,
            "purity": interval(self.purity),
            "purity_by_place": {place: interval(value) for place, value in self.purity_by_place.items()},
            "weight_by_place": self.weight_by_place,
            "false_negatives": interval(self.false_negatives),
            "chance": interval(self.chance),
            "effective_positives": self.positives,
            "effective_negatives": self.negatives,
            "per_structure": self.per_structure,
            "distance_mm_10_50_90": {
                "within": distances.within.mm,
                "beyond": distances.beyond.mm,
                "negatives": distances.negatives.mm,
            },
            "notes": list(self.notes),
        }


def _text(value: Interval | None) -> str:
    if value is None:
        return "no such pair"
    return f"{value.mean:.3f}" + (f" [{value.low:.3f}, {value.high:.3f}]" if value.known else "")


def shared(composition: Tensor, other: Tensor) -> Tensor:
    """``Float[N, M]``: what items have in common, sum_k min(p_ik, p_jk) / sum_k p_ik.

    composition, other  ``Float[N, K]``, ``Float[M, K]``; NaN rows, and rows without a structure, give NaN
    """
    total = torch.zeros(len(composition), len(other))
    for own, theirs in zip(composition.T, other.T, strict=True):
        rows = (own > 0).nonzero().flatten()  # most items are in few structures
        total[rows] += torch.minimum(own[rows][:, None], theirs)
    whole = composition.sum(1, keepdim=True)
    return torch.where((whole > 0) & torch.isfinite(other).all(1), total / whole, torch.nan)


class PairCounts:
    """Weighted sums over pairs, per pair of patients and place."""

    def __init__(self, labels: Labels):
        self.labels = labels
        self.sums: list[pd.DataFrame] = []
        self.per_structure = np.zeros((2, len(labels.names)))
        self.effective: list[Tensor] = []
        self.anchors = 0
        self.earlier: dict[tuple[int, ...], Tensor] = {}  # composition of items that may be in a queue

    def add(self, rows: Keys, cols: Keys, relation: Relation, composition: Tensor) -> None:
        """Add the pairs of one batch whose structures are known.

        cols: the items of the batch, then those of a queue. composition: ``Float[N, K]`` of the batch.
        """
        of_cols = composition
        if len(cols) > len(rows):
            queued = [self.earlier[item] for item in _items(cols)[len(rows) :]]
            of_cols = torch.cat([composition, torch.stack(queued)])
            self.earlier = dict(zip(_items(cols), of_cols, strict=True))
        elif "support" in cols.linked:
            self.earlier = dict(zip(_items(cols), of_cols, strict=True))
        common = shared(composition, of_cols).double()
        known = torch.isfinite(common)
        positive, negative = relation.positive.double(), relation.negative.double()
        attraction = positive.sum(1, keepdim=True)
        attracted = positive * attraction.clamp(max=1) / attraction.clamp(min=1e-12)
        repelled = negative / negative.sum(1, keepdim=True).clamp(min=1e-12)
        has_label = composition.sum(1) > 0  # False for NaN
        self.anchors += int(has_label.sum())
        self.effective.append(torch.stack([_effective(positive), _effective(negative)], 1)[has_label])
        self._add_structures(torch.where(known, attracted, 0.0), composition, of_cols)
        other = (~rows.same_item(cols)).double()
        columns = {
            "patient": rows.patient[:, None].expand_as(common)[known],
            "partner": cols.patient.expand_as(common)[known],
            "place": place_of_pairs(rows, cols)[known],
        }
        for name, weight in (("positive", attracted), ("negative", repelled), ("pairs", other)):
            columns |= {name: weight[known], f"{name}_same": (weight * common)[known]}
        pairs = pd.DataFrame({name: column.numpy() for name, column in columns.items()})
        self.sums.append(pairs.groupby(["patient", "partner", "place"], as_index=False).sum())

    def _add_structures(self, weight: Tensor, composition: Tensor, of_cols: Tensor) -> None:
        for k in range(composition.shape[1]):
            rows = (composition[:, k] > 0).nonzero().flatten()
            if len(rows):
                own = composition[rows, k][:, None].double()
                joint = torch.minimum(own, torch.nan_to_num(of_cols[:, k]).double()) / own
                share = weight[rows] * own / composition[rows].sum(1, keepdim=True)
                self.per_structure[:, k] += [float((share * joint).sum()), float(share.sum())]

    def result(
        self,
        items: str,
        batches: int,
        distances: PairDistances,
        names: dict[int, str],
        notes: tuple[str, ...],
    ) -> PairAudit:
        """The audit. names: code of a patient in keys -> id."""
        keys = ["patient", "partner", "place"]
        sums = pd.concat(self.sums).groupby(keys, as_index=False).sum()

        def fraction(name: str, rows: pd.DataFrame) -> Interval | None:
            totals = rows.groupby("patient")[[name, f"{name}_same"]].sum()
            totals = totals[totals[name] > 0]
            if totals.empty:
                return None
            return over_drawn_patients(
                {name: lambda same, all_: float(same.sum() / all_.sum())},
                totals[f"{name}_same"].to_numpy(),
                totals[name].to_numpy(),
                totals.index.astype(str).tolist(),
                seed=0,
            )[name]

        by_place = {place: sums[sums["place"] == number] for number, place in enumerate(PLACES)}
        purity = {place: fraction("positive", rows) for place, rows in by_place.items()}
        total = max(float(sums["positive"].sum()), np.finfo(float).tiny)
        same, whole = self.per_structure
        effective = torch.cat(self.effective).nanmean(0)
        return PairAudit(
            by=self.labels.by,
            items=items,
            batches=batches,
            anchors=self.anchors,
            purity=fraction("positive", sums),
            purity_by_place={place: value for place, value in purity.items() if value is not None},
            weight_by_place={
                place: float(rows["positive"].sum()) / total for place, rows in by_place.items()
            },
            false_negatives=fraction("negative", sums),
            chance=fraction("pairs", by_place[PLACES[OTHER_PATIENTS]]),
            positives=float(effective[0]),
            negatives=float(effective[1]),
            per_structure={
                name: float(same[k] / whole[k]) for k, name in enumerate(self.labels.names) if whole[k] > 0
            },
            patient_pairs=_patient_pairs(sums, names),
            distances=distances,
            notes=notes,
        )


def _patient_pairs(sums: pd.DataFrame, names: dict[int, str]) -> pd.DataFrame:
    pairs = sums.drop(columns="place").groupby(["patient", "partner"], as_index=False).sum()
    return pd.DataFrame(
        {
            "patient": pairs["patient"].map(names),
            "partner": pairs["partner"].map(names),
            "positive_weight": pairs["positive"],
            "purity": (pairs["positive_same"] / pairs["positive"]).where(pairs["positive"] > 0),
            "negative_weight": pairs["negative"],
            "false_negatives": (pairs["negative_same"] / pairs["negative"]).where(pairs["negative"] > 0),
        }
    )


def _items(keys: Keys) -> list[tuple[int, ...]]:
    return [tuple(item) for item in torch.stack([keys.sample, keys.view, keys.point], 1).tolist()]


def _effective(weights: Tensor) -> Tensor:
    """``Float[N]``: (sum w)^2 / sum w^2 of each row; 0 without a weight."""
    return weights.sum(1) ** 2 / (weights**2).sum(1).clamp(min=1e-12)

"""`medcl3d audit`: how many of a strategy's positives and negatives join the same structure or class."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medcl3d.config.loading import load
from medcl3d.core.batch import PairBatch
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation
from medcl3d.distributed.collectives import say
from medcl3d.downstream.transfer import load_weights
from medcl3d.encoders.network import Network
from medcl3d.evaluation.statistics.bootstrap import over_drawn_patients
from medcl3d.evaluation.statistics.intervals import Interval
from medcl3d.io.atomic import write_text
from medcl3d.io.disk_space import require_writable
from medcl3d.io.progress import track
from medcl3d.objectives.dense import point_features, point_keys, sample_rows
from medcl3d.objectives.relating import EmbeddingQueue, Relating
from medcl3d.pairs import needs_features
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.pair_labels import STRUCTURES, Labels, Structures, labels_of
from medcl3d.pretraining.pair_measures import PLACES, PairDistances, PairFacts, distances_of, place_of_pairs
from medcl3d.pretraining.parts import Pretraining, assemble
from medcl3d.pretraining.summary import summary
from medcl3d.sampling.augment import make_views
from medcl3d.sampling.raw_batch import RawBatch

BATCHES = 20
FEW_BATCHES = 5  # of an audit beside other work: show_pairs, the end of a pretraining
PAIR_AUDIT = "pair_audit.json"  # in the run folder of a pretraining
MIN_NORM = 1e-6  # of a standardised feature vector
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


def audit(
    config_path: Path | str,
    overrides: Sequence[str] = (),
    *,
    by: str = STRUCTURES,
    encoder: Path | None = None,
    batches: int = BATCHES,
    out: Path | None = None,
    check: bool = False,
) -> PairAudit | None:
    """Audit the pairs of a pretraining's configuration against label maps or classes, without training.

    by       "structures" compares label maps; otherwise a column of the manifest with classes
    encoder  run folder of a pretraining, for strategies whose pairs depend on features: its frozen features
             take the place of the trained embeddings
    batches  number of batches
    out      a .json file; the pairs of patients are written to a .csv of the same name
    check    validate only

    ConfigError, DataError: the configuration is wrong, or no pretraining scan has a label map or class.
    """
    if batches < 1:
        raise ConfigError(f"--batches = {batches}: give a number above 0")
    if out is not None and out.suffix.lower() != ".json":
        raise ConfigError(f"--out {out}: the audit is written as JSON; use a name that ends in .json")
    parts = assemble(load(config_path, overrides, PretrainConfig))
    labels, network = labels_of(parts, by), None
    if encoder is not None:
        network = parts.learner.network
        load_weights(network, encoder, "encoder")
        network.eval()
    say(summary(parts))
    if out is not None:
        require_writable(out.parent, "--out")
    if check:
        return None
    found = audit_of(parts, labels, network, batches)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, json.dumps(found.as_dict(), indent=1) + "\n")
        write_text(out.with_suffix(".csv"), found.patient_pairs.to_csv(index=False))
    say("\n".join(found.lines()))
    return found


def audit_by_structures(parts: Pretraining, network: Network | None = None) -> PairAudit | None:
    """Audit the first `FEW_BATCHES` batches by label maps; None if none of their items is in a structure."""
    if not any(parts.store.has_label(int(row)) for row in parts.scans.rows):
        return None
    try:
        return audit_of(parts, Structures(parts.store), network, FEW_BATCHES)
    except DataError:
        return None


def audit_of(
    parts: Pretraining, labels: Labels, network: Network | None = None, batches: int = BATCHES
) -> PairAudit:
    """Audit the first `batches` batches. network: frozen features for strategies that use them."""
    counts, facts, scans = _Counts(labels), [], np.asarray(parts.scans.rows)
    for batch in _batches(parts, network, batches):
        keys, relation, position_mm = batch.keys, batch.relation, batch.position_mm
        if position_mm is None:
            items, composition = "views", labels.of_views(batch.raw, scans)
        else:
            items, composition = "points", labels.of_points(keys, position_mm, scans)
        counts.add(keys, batch.columns, relation, composition)
        square = Relation(*(weight[:, : len(keys)] for weight in (relation.positive, relation.negative)))
        facts.append(PairFacts(items, (), keys, square, {}, {}))
    if not counts.anchors:
        raise DataError(f"{parts.store.root}: no item of {batches} batches is in a structure or has a class")
    notes = []
    if needs_features(parts.strategy) and network is None:
        notes.append("pairs and weights that depend on a whole batch are not included; give an encoder")
    collection = parts.scans.collection
    names = dict(zip(collection.columns["patient"], collection.table["patient"].astype(str), strict=True))
    return counts.result(facts[0].items, batches, distances_of(facts), names, tuple(notes))


@dataclass(frozen=True)
class _Batch:
    """One batch: its items, the relation to the columns (items, then a queue's), world mm of points."""

    raw: RawBatch
    keys: Keys
    columns: Keys
    relation: Relation
    position_mm: Tensor | None


def _batches(parts: Pretraining, network: Network | None, number: int) -> Iterator[_Batch]:
    dataset, relating = parts.dataset(), parts.learner.relating
    with_features = None if network is None else _RelationOfFeatures(network, relating)
    for step in track(range(number), "auditing batches"):
        raw = dataset[step]
        batch = make_views(raw, parts.learner.recipe)
        keys, position_mm, valid = raw.keys, None, None
        if raw.points is not None:
            keys = point_keys(batch.main, raw.points)
            valid = torch.isfinite(keys.position_mm).all(1).nonzero().flatten()
            position_mm = raw.points.position_mm[sample_rows(batch.main)].flatten(0, 1)[valid]
            keys = keys[valid]
        if with_features is None:
            yield _Batch(raw, keys, keys, relating.relate(keys, keys, None), position_mm)
        else:
            columns, relation = with_features(batch, keys, valid)
            yield _Batch(raw, keys, columns, relation, position_mm)


class _RelationOfFeatures:
    """The relation of a strategy whose pairs depend on features, with those of a frozen network."""

    def __init__(self, network: Network, relating: Relating):
        self.network, self.relating, self.queue = network, relating, relating.support

    @torch.no_grad()
    def __call__(self, batch: PairBatch, keys: Keys, valid: Tensor | None) -> tuple[Keys, Relation]:
        """The columns, and the relation ``[N, M]``. valid: rows of the points that `keys` are of."""
        features = self._features(batch, valid)
        z = (features - features.mean(0)) / features.std(0).clamp(min=MIN_NORM)
        z = z / z.norm(dim=1, keepdim=True).clamp(min=MIN_NORM)
        if self.queue is not None and self.queue.z.shape[1] != z.shape[1]:
            self.queue = EmbeddingQueue(self.queue.size, z.shape[1], self.queue.layout)
        relating = Relating(self.relating.relate, self.relating.strategy, self.queue)
        columns, column_keys = relating.columns(z, keys)
        return column_keys, relating(keys, column_keys, z @ columns.T)

    def _features(self, batch: PairBatch, valid: Tensor | None) -> Tensor:
        if valid is None:
            return torch.cat([self.network.encoder(group.voxels).pooled for group in batch.groups]).float()
        assert batch.points is not None
        maps = self.network.encoder(batch.main.voxels).maps
        features = [point_features(one, batch.main, batch.points).flatten(0, 1) for one in maps]
        return torch.cat(features, 1).float()[valid]


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


class _Counts:
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

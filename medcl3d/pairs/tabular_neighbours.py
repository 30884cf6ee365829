"""Second views from patients with similar tabular data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from pydantic import Field
from torch import Tensor

from medcl3d.config.field_types import NonNegative, PositiveInt
from medcl3d.core.collection import Collection
from medcl3d.core.errors import DataError
from medcl3d.core.geometry import ViewSpec
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation, related
from medcl3d.pairs import PAIRS, StrategyTraits
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.matching import corresponding_crops
from medcl3d.pairs.metadata_similarity import (
    Combine,
    Kernels,
    require_columns,
    similarity_between,
    similarity_of,
    without_missing,
)

NEAR = 128  # scans per block of the first comparison


@PAIRS.register("tabular_neighbours")
@dataclass(frozen=True, kw_only=True)
class TabularNeighbours:
    """Positives are corresponding crops of two patients, the second one of the `k` most similar by a table.

    columns     column -> bandwidth of its RBF kernel in the column's unit, or `equal`
    combine     mean or product of the columns' kernels
    threshold   P = 1 from this similarity on and 0 below it, as in TGV; a scan without such a neighbour
                starts no sample (default: P is the similarity of every pair)
    k           number of most similar patients from which the second view is drawn, in the anchor's modality;
                equally similar ones at the limit are drawn at random
    weighting   similarity: with probabilities proportional to it; uniform: all k equally
    jitter_mm   largest offset of the second crop from the corresponding position, along each axis
    on_missing  a missing value. ignore: the column drops out of a pair, and a scan without any known column
                starts no sample; drop: a scan with a missing column starts no sample and is never a
                neighbour; error: it is refused

    P = similarity of two scans (or 1 from `threshold` on), for all pairs of a batch; M = 1 - P.
    Source: tabular guidance for images (TGV, Hasny et al., 2025), in which the pairs of a batch above a
    threshold are positives, and no second view is drawn from a neighbour.
    """

    columns: Kernels
    combine: Combine = "mean"
    threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    k: PositiveInt = 5
    weighting: Literal["similarity", "uniform"] = "similarity"
    jitter_mm: NonNegative = 0.0
    on_missing: Literal["ignore", "drop", "error"] = "ignore"

    @property
    def traits(self) -> StrategyTraits:
        """The traits: the columns are the signal."""
        return StrategyTraits(
            signal_columns=tuple(self.columns),
            crosses_patients=True,
            on_missing=self.on_missing,
        )

    def anchors(self, collection: Collection) -> Anchors:
        """Scans with a known column and a neighbour, filtered by `on_missing`.

        DataError for missing or constant columns, and for fewer than k other patients.
        """
        known = require_columns("tabular_neighbours", collection, self.columns)
        patients = len(np.unique(collection.columns["patient"]))
        if patients <= self.k:
            raise DataError(
                f"tabular_neighbours: k = {self.k} other patients, but the collection has {patients - 1}; "
                f"lower k to {patients - 1} or less"
            )
        unknown = Counter({f"its {', '.join(self.columns)} are missing": int((~known).sum())})
        anchors = Anchors(np.flatnonzero(known), +unknown)
        anchors = without_missing("tabular_neighbours", collection, self.columns, self.on_missing, anchors)
        unpaired = ~self._have_neighbours(collection, anchors.ids)[anchors.ids]
        condition = "is similar in any column"
        remedy = "fill the columns in, widen a bandwidth, or choose others"
        if self.threshold is not None:
            condition = f"has a similarity of threshold = {self.threshold:g} or more"
            remedy = f"lower threshold, {remedy}"
        left_out = anchors.left_out + Counter({f"no other patient {condition}": int(unpaired.sum())})
        return Anchors(anchors.ids[~unpaired], left_out, anchors.notes).require("tabular_neighbours", remedy)

    def _have_neighbours(
        self, collection: Collection, scans: Int[np.ndarray, " m"]
    ) -> Bool[np.ndarray, " n"]:
        """``Bool[n]``: scans that a scan of another patient attracts; exact for `scans` ``Int[m]``.

        Nearly all have a neighbour among scans that are close in the table's order. Only the others are
        compared with the whole collection, since comparing all scans with all takes quadratic time.
        """
        patient, modality = collection.columns["patient"], collection.columns["modality"]
        how = self.columns, self.combine, self.on_missing
        order = np.lexsort((*(collection.column(name) for name in self.columns), modality))
        found = np.zeros(len(collection), dtype=bool)
        for start in range(0, len(order), NEAR):
            rows = order[start : start + NEAR]
            fits = (patient[rows, None] != patient[rows]) & (modality[rows, None] == modality[rows])
            similarity = similarity_between(collection, rows, rows, *how)
            found[rows] = (fits & self._attracts(similarity)).any(1)
        for scan in scans[~found[scans]].tolist():
            found[scan] = len(self.neighbours(collection, scan)[0]) > 0
        return found

    def _attracts(self, similarity: Float64[np.ndarray, "*s"]) -> Bool[np.ndarray, "*s"]:
        """Whether similarities give a positive weight."""
        attracts: np.ndarray = similarity > 0 if self.threshold is None else similarity >= self.threshold
        return attracts

    def neighbours(
        self, collection: Collection, scan: int, rng: np.random.Generator | None = None
    ) -> tuple[Int[np.ndarray, " m"], Float64[np.ndarray, " m"]]:
        """Attracting scans ``Int[n]`` of the k most similar patients, in the modality, and similarities.

        rng  draws among equally similar patients at the limit of k; None: the first of the table

        Scans with equal values are compared once, so the time grows with the number of different values.
        """
        group, members, first = collection.groups("modality", *self.columns)
        modality, patient = collection.columns["modality"], collection.columns["patient"]
        similarity = np.zeros(len(members))
        inside = np.flatnonzero(modality[first] == modality[scan])
        how = self.columns, self.combine, self.on_missing
        similarity[inside] = similarity_between(collection, np.array([scan]), first[inside], *how)[0]
        of_modality = self._attracts(similarity) & (modality[first] == modality[scan])
        order = np.flatnonzero(of_modality)
        order = order[np.argsort(-similarity[order], kind="stable")]
        ends = np.flatnonzero(np.diff(similarity[order], append=-1)) + 1
        nearest: dict[int, int] = {}  # patient -> one of its scans
        for start, stop in pairwise([0, *ends.tolist()]):
            equal = np.sort(np.concatenate([members[one] for one in order[start:stop]]))
            equal = equal if rng is None else rng.permutation(equal)
            for other in equal[patient[equal] != patient[scan]].tolist():
                nearest.setdefault(int(patient[other]), other)
                if len(nearest) == self.k:
                    break
            if len(nearest) == self.k:
                break
        theirs = [collection.sharing(one, "patient", "modality") for one in nearest.values()]
        rows = np.sort(np.concatenate([np.array([], dtype=np.int64), *theirs]))
        rows = rows[of_modality[group[rows]]]
        rows = rows[np.argsort(-similarity[group[rows]], kind="stable")]
        return rows, similarity[group[rows]]

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """A crop of scan `anchor` and the corresponding crop of a similar patient."""
        scans, similarity = self.neighbours(collection, anchor, rng)
        weights = similarity / similarity.sum() if self.weighting == "similarity" else None
        return corresponding_crops(collection, anchor, int(rng.choice(scans, p=weights)), self.jitter_mm, rng)

    def relate(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
        """P = similarity, or 1 from the threshold on; 1 in one scan of one sample; M = 1 - P."""
        positive = similarity_of(rows, cols, self.columns, self.combine, self.on_missing)
        if self.threshold is not None:
            positive = (positive >= self.threshold).to(positive.dtype)
        same = (rows.sample[:, None] == cols.sample) & (rows.scan[:, None] == cols.scan)
        return related(rows, cols, torch.where(same, 1.0, positive))

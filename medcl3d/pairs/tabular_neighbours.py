"""The second view comes from a patient who is alike by a table."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from medcl3d.data.collection import Collection
from medcl3d.errors import DataError
from medcl3d.pairs import PAIRS
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.kernels import Combine, Kernels, require_columns, similarity_between, similarity_of, without_missing
from medcl3d.pairs.matching import matched_crops
from medcl3d.registry import Count, NonNegative
from medcl3d.types import Keys, Relation, ViewSpec, related

NEAR = 128  # scans that are first compared with each other


@PAIRS.register("tabular_neighbours")
@dataclass(frozen=True, kw_only=True)
class TabularNeighbours:
    """Positives are crops of two patients at one place of the body, the second one of the `k` most alike by a table.

    columns     column -> bandwidth of its RBF kernel in the column's unit, or `equal`
    combine     mean or product of the columns' kernels
    threshold   P = 1 from this similarity on and 0 below it, as in TGV; a scan without such a neighbour starts no sample
                (default: P is the similarity of every pair)
    k           from so many most similar patients the second view is drawn, of the anchor's modality
    weighting   similarity: more often from the more similar; uniform: from all k alike
    jitter_mm   how far from the matched place the second crop may lie, along each axis
    on_missing  what lacks a column. ignore: it drops out of a pair, and a scan without any starts no sample; drop: a scan that
                lacks one starts no sample and is nobody's neighbour; error: it is refused

    P = similarity of the two scans (or 1 from `threshold` on), wherever they stand in the batch; M = 1 - P.
    Source: tabular guidance for images (TGV, Hasny et al., 2025). There, the pairs of a batch above a threshold are
    positives, and no second view is drawn from a neighbour.
    """

    columns: Kernels
    combine: Combine = "mean"
    threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    k: Count = 5
    weighting: Literal["similarity", "uniform"] = "similarity"
    jitter_mm: NonNegative = 0.0
    on_missing: Literal["ignore", "drop", "error"] = "ignore"

    crosses_patients = True

    @property
    def informative(self) -> tuple[str, ...]:
        """The columns."""
        return tuple(self.columns)

    def anchors(self, collection: Collection) -> Anchors:
        """Scans with a known column, with what `on_missing` says. DataError for columns that tell nothing, and for fewer than k
        other patients.
        """
        known = require_columns("tabular_neighbours", collection, self.columns)
        patients = len(np.unique(collection.columns["patient"]))
        if patients <= self.k:
            raise DataError(
                f"tabular_neighbours: k = {self.k} other patients, but there are {patients - 1}; lower k to {patients - 1} or less"
            )
        none = Counter({f"its {', '.join(self.columns)} are missing": int((~known).sum())})
        told = Anchors(np.flatnonzero(known), +none)
        told = without_missing("tabular_neighbours", collection, self.columns, self.on_missing, told)
        alone = ~self._have_neighbours(collection, told.ids)[told.ids]
        how, remedy = "is alike in any column", "fill the columns in, widen a bandwidth, or choose others"
        if self.threshold is not None:
            how, remedy = f"has a similarity of threshold = {self.threshold:g} or more", f"lower threshold, {remedy}"
        left_out = told.left_out + Counter({f"no other patient {how}": int(alone.sum())})
        return Anchors(told.ids[~alone], left_out, told.notes).require("tabular_neighbours", remedy)

    def _have_neighbours(self, collection: Collection, asked: np.ndarray) -> np.ndarray:
        """``Bool[n]``: scans that another patient's attracts, right for those that are asked, ``Int[m]``.

        Nearly all find one among scans that lie near in the table's order; only the others ask the whole collection, since
        to compare all with all is quadratic in their number.
        """
        patient, modality = collection.columns["patient"], collection.columns["modality"]
        order = np.lexsort((*(collection.column(name) for name in self.columns), modality))
        found = np.zeros(len(collection), dtype=bool)
        for start in range(0, len(order), NEAR):
            rows = order[start : start + NEAR]
            fits = (patient[rows, None] != patient[rows]) & (modality[rows, None] == modality[rows])
            alike = similarity_between(collection, rows, rows, self.columns, self.combine, self.on_missing)
            found[rows] = (fits & self._attracts(alike)).any(1)
        for scan in asked[~found[asked]].tolist():
            found[scan] = len(self.neighbours(collection, scan)[0]) > 0
        return found

    def _attracts(self, alike: np.ndarray) -> np.ndarray:
        """Whether similarities give a positive weight."""
        attracts: np.ndarray = alike > 0 if self.threshold is None else alike >= self.threshold
        return attracts

    def neighbours(self, collection: Collection, scan: int) -> tuple[np.ndarray, np.ndarray]:
        """Scans ``Int[n]`` of the k most similar patients that attract a scan, of its modality, and their similarities."""
        rows = collection.sharing(scan, "modality")
        alike = similarity_between(collection, np.array([scan]), rows, self.columns, self.combine, self.on_missing)[0]
        patient = collection.columns["patient"]
        order = np.argsort(-alike, kind="stable")
        order = order[self._attracts(alike[order]) & (patient[rows[order]] != patient[scan])]
        patients = patient[rows[order]]
        nearest: set[int] = set()
        for one in patients:  # most often the first few scans are of k patients
            nearest.add(int(one))
            if len(nearest) == self.k:
                break
        chosen = order[np.isin(patients, list(nearest))]
        return rows[chosen], alike[chosen]

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """A crop of scan `anchor` and the matching one of a similar patient."""
        scans, alike = self.neighbours(collection, anchor)
        weights = alike / alike.sum() if self.weighting == "similarity" else None
        return matched_crops(collection, anchor, int(rng.choice(scans, p=weights)), self.jitter_mm, rng)

    def relate(self, rows: Keys, cols: Keys, similarity: Tensor | None) -> Relation:
        """P = similarity, or 1 from the threshold on; 1 in one scan of one sample; M = 1 - P."""
        alike = similarity_of(rows, cols, self.columns, self.combine, self.on_missing)
        if self.threshold is not None:
            alike = (alike >= self.threshold).to(alike.dtype)
        same = (rows.sample[:, None] == cols.sample) & (rows.scan[:, None] == cols.scan)
        return related(rows, cols, torch.where(same, 1.0, alike))

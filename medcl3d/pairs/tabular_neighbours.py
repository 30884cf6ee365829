"""The second view comes from a patient who is alike by a table."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from medcl3d.data.manifest import Collection
from medcl3d.errors import DataError
from medcl3d.pairs import PAIRS
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.kernels import Combine, Kernels, require_columns, similarity_of, similarity_to, without_missing
from medcl3d.pairs.matching import matched_crops
from medcl3d.registry import Count, NonNegative
from medcl3d.types import Keys, Relation, ViewSpec, related


@PAIRS.register("tabular_neighbours")
@dataclass(frozen=True, kw_only=True)
class TabularNeighbours:
    """Positives are crops of two patients at one place of the body, the second one of the `k` most alike by a table.

    columns     column -> bandwidth of its RBF kernel in the column's unit, or `equal`
    combine     mean or product of the columns' kernels
    k           from so many most similar patients the second view is drawn, of the anchor's modality
    weighting   similarity: more often from the more similar; uniform: from all k alike
    jitter_mm   how far from the matched place the second crop may lie, along each axis
    on_missing  what lacks a column. ignore: it drops out of a pair, and a scan without any starts no sample; drop: a scan that
                lacks one starts no sample and is nobody's neighbour; error: it is refused

    P = similarity of the two scans, wherever they stand in the batch; M = 1 - P.
    Source: tabular guidance for images (TGV, Hasny et al., 2025).
    """

    columns: Kernels
    combine: Combine = "mean"
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
        alone = np.array([not len(self.neighbours(collection, scan)[0]) for scan in told.ids])
        left_out = told.left_out + Counter({"no other patient is alike in any column": int(alone.sum())})
        remedy = "fill the columns in, widen a bandwidth, or choose others"
        return Anchors(told.ids[~alone], left_out, told.notes).require("tabular_neighbours", remedy)

    def neighbours(self, collection: Collection, scan: int) -> tuple[np.ndarray, np.ndarray]:
        """Scans ``Int[n]`` of the k most similar patients in the scan's modality, and their similarities."""
        alike = similarity_to(collection, scan, self.columns, self.combine, self.on_missing)
        patient = collection.columns["patient"]
        alike[(patient == patient[scan]) | (collection.columns["modality"] != collection.columns["modality"][scan])] = 0
        order = np.argsort(-alike, kind="stable")
        order = order[alike[order] > 0]
        nearest = list(dict.fromkeys(patient[order].tolist()))[: self.k]
        chosen = order[np.isin(patient[order], nearest)]
        return chosen, alike[chosen]

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """A crop of scan `anchor` and the matching one of a similar patient."""
        scans, alike = self.neighbours(collection, anchor)
        weights = alike / alike.sum() if self.weighting == "similarity" else None
        return matched_crops(collection, anchor, int(rng.choice(scans, p=weights)), self.jitter_mm, rng)

    def relate(self, rows: Keys, cols: Keys, similarity: Tensor | None) -> Relation:
        """P = similarity by the table, 1 in one scan of one sample; M = 1 - P."""
        alike = similarity_of(rows, cols, self.columns, self.combine, self.on_missing)
        same = (rows.sample[:, None] == cols.sample) & (rows.scan[:, None] == cols.scan)
        return related(rows, cols, torch.where(same, 1.0, alike))

"""Points of one region attract: regions of label maps, in any scan, or supervoxels within a sample."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medcl3d.config.field_types import Positive
from medcl3d.core.batch import REGION
from medcl3d.core.collection import Collection
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation, related
from medcl3d.pairs import PAIRS, StrategyTraits
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.pair_of_crops import PointsOfCrops


@PAIRS.register("region_points")
@dataclass(frozen=True, kw_only=True)
class RegionPoints(PointsOfCrops):
    """As voxel_correspondence, and points of one region attract: P = 1 and M = 0.

    regions        labels: classes above 0 of the scans' label maps, the same in any scan; supervoxels: SLIC
                   on the crops' intersection, the same within a sample only
    supervoxel_mm  edge of a supervoxel, approximately
    balanced       M is multiplied by n / (K n_r), so that the K regions of a batch repel equally, whatever
                   their number of points n_r of n; the background of label maps is one of them
    num_points, tolerance_mm, ignore_mm  for points of one scan, as in voxel_correspondence
    min_iou, max_iou  overlap of the two crops of a sample

    Points of the background, and of scans without a label map, are related as in voxel_correspondence. An
    atlas is used by registering it to the scans: its warped labels are their label maps. Between whole views
    (an objective without points), P = 1 within the sample.
    Source: regions of label maps as positives as in anatomix (Dey et al., ICLR 2025, arXiv 2411.02372);
    supervoxels from SLIC (Achanta et al., TPAMI 2012) of scikit-image.
    """

    regions: Literal["labels", "supervoxels"] = "labels"
    supervoxel_mm: Positive = 12.0
    balanced: bool = True

    @property
    def traits(self) -> StrategyTraits:
        """The traits: a placebo permutes the regions of a sample's points."""
        return StrategyTraits(
            signal_columns=(REGION,),
            relates_points=True,
            reads_regions=True,
            supervoxel_mm=self.supervoxel_mm if self.regions == "supervoxels" else None,
        )

    def anchors(self, collection: Collection) -> Anchors:
        """Scans in which two crops can be far enough apart. DataError if `labels` has no label map."""
        found = super().anchors(collection)
        if self.regions == "supervoxels":
            return found
        labelled = np.zeros(len(collection), dtype=bool)
        if "label" in collection.table:
            labelled = collection.table["label"].notna().to_numpy()
        if not labelled[found.ids].any():
            reason = Counter({"it has no label map": len(found.ids)})
            none = Anchors(found.ids[:0], found.left_out + reason)
            return none.require(
                "region_points", "set regions: supervoxels, or add label maps to the manifest"
            )
        count = int(labelled[found.ids].sum())
        note = f"region_points: regions of {count} of {len(found.ids)} scans, those with a label map"
        return replace(found, notes=(*found.notes, note))

    def link(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"]) -> tuple[Keys, Keys]:
        """Link each column's `balance`, n / (K n_r); 1 without a known region."""
        if not self.balanced or REGION not in cols.metadata:
            return rows, cols
        region = cols.metadata[REGION]
        known = region >= 0
        group = torch.stack([region, cols.sample if self.regions == "supervoxels" else region])[:, known]
        _, of_point, count = torch.unique(group, dim=1, return_inverse=True, return_counts=True)
        balance = torch.ones(len(cols), dtype=torch.float64, device=region.device)
        balance[known] = known.sum() / (len(count) * count[of_point].double())
        return rows, replace(cols, linked={**cols.linked, "balance": balance})

    def relate(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
        """P = 1 for one point and for one region; M is balanced by region after `link`."""
        known = self.correspondence(rows, cols)
        if REGION not in rows.metadata:
            return known
        same = self._same_region(rows, cols)
        negative = torch.where(same, 0.0, known.negative.double())
        if "balance" in cols.linked:
            negative = negative * cols.linked["balance"]
        return related(rows, cols, torch.maximum(known.positive, same.float()), negative)

    def _same_region(self, rows: Keys, cols: Keys) -> Bool[Tensor, "N M"]:
        first, second = rows.metadata[REGION], cols.metadata[REGION]
        same = (first[:, None] == second) & (second > 0)
        return same & (rows.sample[:, None] == cols.sample) if self.regions == "supervoxels" else same

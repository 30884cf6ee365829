"""Corresponding points in two crops."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from medcl3d.config.field_types import PositiveInt
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation
from medcl3d.pairs import PAIRS, StrategyTraits
from medcl3d.pairs.pair_of_crops import PointsOfCrops


@PAIRS.register("voxel_correspondence")
@dataclass(frozen=True, kw_only=True)
class VoxelCorrespondence(PointsOfCrops):
    """Positives are points of two overlapping crops at the same physical position, within `tolerance_mm`.

    Points of one scan nearer than `ignore_mm` are ignored: neighbouring points look similar and are not
    negatives. Between whole views (an objective without points), P = 1 within the sample.

    samples_per_scan  samples of each scan per step, which then holds samples_per_step / samples_per_scan
                      scans; points of one scan are related across samples too

    Source: vox2vec (Goncharov et al., MICCAI 2023), SAM (Yan et al., TMI 2022), DenseCL (Wang et al., CVPR
    2021).
    """

    samples_per_scan: PositiveInt = 1

    @property
    def traits(self) -> StrategyTraits:
        """The traits, with the batch grouping of `samples_per_scan`."""
        return StrategyTraits(
            signal_columns=("position_mm",),
            weak_placebo="one point in two crops stays a pair: only which neighbours are ignored changes; "
            "compare with augmented_views",
            constant_across=("sample", "frame"),
            relates_points=True,
            samples_per_scan=self.samples_per_scan,
        )

    def relate(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
        """Points: P = 1 within tolerance_mm, ignored up to ignore_mm. Views: P = 1 within the sample."""
        return self.correspondence(rows, cols)

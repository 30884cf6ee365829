"""Slabs at one normalised position along an axis, across patients."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from medcl3d.config.field_types import Fraction, Positive
from medcl3d.core.collection import Collection
from medcl3d.core.geometry import ViewSpec
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation, related
from medcl3d.pairs import PAIRS, StrategyTraits
from medcl3d.pairs.anchors import Anchors, every_scan
from medcl3d.pairs.boxes import random_box, slab_size, whole_body_across


@PAIRS.register("slice_position")
@dataclass(frozen=True, kw_only=True)
class SlicePosition:
    """Positives are slabs of any patient with normalised positions along `axis` less than `threshold` apart.

    axis            0, 1, 2: towards the patient's right, front, head
    threshold       fraction of the body's extent along the axis
    num_partitions  in place of threshold: positives are in the same of this many equal parts of the body
                    (GLCL)
    thickness_mm    thickness of a slab, resampled to the patch's voxels along the axis (default: as many
                    voxels of the scan as the patch has, without resampling)
    num_views       augmented views of the slab of a sample: PCL's batches hold two of each slice

    In its plane a slab holds the whole body, resampled to the patch, as PCL and GLCL compare whole slices.
    Both in-plane axes are scaled by one factor, so the body keeps its proportions: if the body does not fill
    the patch, the slab extends past it, and past the scan it is filled with the scan's background.
    Positions are fractions of the body, as published. They are comparable if scans show the same part of the
    body; otherwise use `body_position`.
    Source: PCL (Zeng et al., MICCAI 2021), GLCL (Chaitanya et al., NeurIPS 2020, section 3.1).
    """

    axis: Literal[0, 1, 2] = 2
    threshold: Fraction = 0.1
    num_partitions: Annotated[int, Field(ge=2)] | None = None
    thickness_mm: Positive | None = None
    num_views: Annotated[int, Field(ge=2)] = 2

    traits: ClassVar[StrategyTraits] = StrategyTraits(signal_columns=("body",))

    def anchors(self, collection: Collection) -> Anchors:
        """Every scan."""
        return every_scan(collection)

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """One slab of scan `anchor`, `num_views` times."""
        size = slab_size(collection, anchor, self.axis, self.thickness_mm)
        slab = random_box(replace(collection, patch_size=size), anchor, rng)
        box = whole_body_across(collection, anchor, self.axis, slab)
        return (ViewSpec(anchor, box, shape=collection.patch_size),) * self.num_views

    def relate(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
        """P = 1 within the threshold or the part, across patients too; M = 1 - P."""
        first, second = rows.fraction[:, self.axis, None], cols.fraction[:, self.axis]
        if self.num_partitions is None:
            near = (first - second).abs() < self.threshold
        else:
            number = self.num_partitions
            parts = ((x * number).floor().clamp(0, number - 1) for x in (first, second))
            near = next(parts) == next(parts)
        return related(rows, cols, near | (rows.sample[:, None] == cols.sample))

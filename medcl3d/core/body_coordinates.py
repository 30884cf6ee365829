"""Positions that are comparable across patients: millimetres from the middle of the body, or of an atlas."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64, Int

BODY = "body"  # the signal column of strategies that use body positions


@dataclass(frozen=True)
class BodyCoordinates:
    """Body coordinates of each scan.

    from_world  ``Float64[n, 4, 4]`` world mm -> body mm, RAS+ axes. `prepare` writes it once: the origin is
                the middle of the body mask's box (of the whole scan without a mask, as for crops around one
                organ), or the manifest's column `atlas` names an affine into the space of an atlas
    box_mm      ``Float64[n, 2, 3]`` lowest and highest body mm of each scan's body
    shift       ``Float64[n, 3]`` in [0, 1): a placebo shifts each scan by this fraction of the body's extent,
                wrapping around at its end, so that positions agree in no two scans and distances within a
                scan stay the same (except for what wraps)

    Coordinates are in mm, not in fractions of the body's size: a scan that ends at the chest has another
    size, not another scale.
    """

    from_world: Float64[np.ndarray, "n 4 4"]
    box_mm: Float64[np.ndarray, "n 2 3"]
    shift: Float64[np.ndarray, "n 3"]

    @staticmethod
    def of(
        from_world: Float64[np.ndarray, "n 4 4"],
        affines: Float64[np.ndarray, "n 4 4"],
        body_boxes: Int[np.ndarray, "n 2 3"],
    ) -> BodyCoordinates:
        """Build from the scans' affines ``[n, 4, 4]`` (voxel -> world mm) and body boxes ``Int[n, 2, 3]``."""
        to_body = from_world @ affines
        ends = np.stack([body_boxes[:, 0] - 0.5, body_boxes[:, 1] - 0.5], axis=1)
        corners = np.stack(
            [ends[:, [(c >> axis) & 1 for axis in range(3)], range(3)] for c in range(8)], axis=1
        )
        placed = np.einsum("nij,ncj->nci", to_body[:, :3, :3], corners) + to_body[:, None, :3, 3]
        box_mm = np.stack([placed.min(1), placed.max(1)], axis=1)
        return BodyCoordinates(from_world, box_mm, np.zeros((len(from_world), 3)))

    @cached_property
    def extent_mm(self) -> Float64[np.ndarray, "2 3"]:
        """``Float64[2, 3]`` lowest and highest body mm of any scan."""
        return np.stack([self.box_mm[:, 0].min(0), self.box_mm[:, 1].max(0)])

    def place(
        self, scans: Int[np.ndarray, " N"], world: Float64[np.ndarray, "N 3"]
    ) -> Float64[np.ndarray, "N 3"]:
        """Convert world mm to body mm: ``Int[N]`` scans, ``[N, 3]`` -> ``Float64[N, 3]``."""
        affines = self.from_world[scans]
        found: np.ndarray = np.einsum("nij,nj->ni", affines[:, :3, :3], world) + affines[:, :3, 3]
        shift = self.shift[scans]
        if not shift.any():
            return found
        low, high = self.extent_mm
        wrapped = low + np.mod(found - low + shift * (high - low), high - low)
        return np.asarray(np.where(shift == 0, found, wrapped))

    def to_world(self, scan: int, body: Float64[np.ndarray, 3]) -> Float64[np.ndarray, 3]:
        """Convert a position ``[3]`` in body mm to world mm, without a placebo's shift, for matching."""
        affine = self.from_world[scan]
        return np.linalg.solve(affine[:3, :3], body - affine[:3, 3])


def middle_of_body(
    affine: Float64[np.ndarray, "4 4"], body_box: Int[np.ndarray, "2 3"]
) -> Float64[np.ndarray, "4 4"]:
    """``Float64[4, 4]`` world mm -> mm from the middle of the body box ``Int[2, 3]``, along world axes."""
    middle = affine[:3, :3] @ ((body_box[0] + body_box[1] - 1) / 2) + affine[:3, 3]
    from_world = np.eye(4)
    from_world[:3, 3] = -middle
    return from_world

"""Positions that are comparable across patients: millimetres from the middle of the body, or of an atlas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int

BODY = "body"  # the signal column of strategies that use body positions


@dataclass(frozen=True)
class BodyCoordinates:
    """Body coordinates of each scan.

    from_world  ``Float64[n, 4, 4]`` world mm -> body mm, RAS+ axes. `prepare` writes it once: the origin is
                the middle of the body mask's box (of the whole scan without a mask, as for crops around one
                organ), or the manifest's column `atlas` names an affine into the space of an atlas

    Coordinates are in mm, not in fractions of the body's size: a scan that ends at the chest has another
    size, not another scale.
    """

    from_world: Float64[np.ndarray, "n 4 4"]

    def place(
        self, scans: Int[np.ndarray, " N"], world: Float64[np.ndarray, "N 3"]
    ) -> Float64[np.ndarray, "N 3"]:
        """Convert world mm to body mm: ``Int[N]`` scans, ``[N, 3]`` -> ``Float64[N, 3]``."""
        affines = self.from_world[scans]
        found: np.ndarray = np.einsum("nij,nj->ni", affines[:, :3, :3], world) + affines[:, :3, 3]
        return found

    def to_world(self, scan: int, body: Float64[np.ndarray, 3]) -> Float64[np.ndarray, 3]:
        """Convert a position ``[3]`` in body mm to world mm."""
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

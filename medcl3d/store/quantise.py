"""Pack voxels into two bytes: float16, or int16 with a scale per scan (30 times the steps)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from medcl3d.core.errors import DataError

StoreAs = Literal["float16", "int16"]
Scaling = tuple[float, float]  # stored * first + second

AS_STORED: Scaling = (1.0, 0.0)
_STEPS = 65535


def pack(
    voxels: np.ndarray, store_as: StoreAs, name: Any, remedy: str = "use store_as=int16"
) -> tuple[np.ndarray, Scaling]:
    """Pack ``Float32`` voxels into two bytes each; also returns the scaling that `unpack` needs.

    int16 keeps whole numbers within its range; other values are exact to half a step of (max - min) / 65535.
    DataError, with the scan's `name` and the `remedy`, if the values do not fit float16.
    """
    if store_as == "float16":
        with np.errstate(over="ignore"):  # values that become infinite are refused below
            stored = voxels.astype(np.float16)
        if not np.isfinite(stored).all():
            raise DataError(name, f"values up to {np.abs(voxels).max():g} do not fit float16", remedy)
        return stored, AS_STORED
    low, high = float(voxels.min()), float(voxels.max())
    if low >= -32768 and high <= 32767 and np.array_equal(np.round(voxels), voxels):
        return voxels.astype(np.int16), AS_STORED
    step = (high - low) / _STEPS
    steps = np.round((voxels.astype(np.float64) - low) / step) - 32768
    return steps.clip(-32768, 32767).astype(np.int16), (step, low + 32768 * step)


def unpack(stored: np.ndarray, scaling: Scaling) -> np.ndarray:
    """``Float32`` voxels, as a copy."""
    voxels = stored.astype(np.float32)
    scale(voxels, scaling)
    return voxels


def scale(voxels: np.ndarray, scaling: Scaling) -> None:
    """Apply the scaling of stored voxels to their ``Float32`` copy, in place."""
    if scaling != AS_STORED:
        voxels *= np.float32(scaling[0])
        voxels += np.float32(scaling[1])

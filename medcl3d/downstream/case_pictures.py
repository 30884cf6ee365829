"""Pictures of test cases, with true and predicted outlines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from skimage.measure import find_contours

from medcl3d.core.geometry import Box
from medcl3d.store.store import Store

TRUE, PREDICTED = "#3bb273", "#e4572e"
LONGEST_NAME = 24
SMALLEST_MM, AROUND = 20.0, 0.8
"""Half the width of a picture: at least so much, and so much of the label's larger extent."""


def picture_of_cases(
    store: Store,
    scans: Sequence[int],
    cases: Sequence[Mapping[str, Any]],
    both: Callable[[int], tuple[np.ndarray, np.ndarray]],
    num: int = 6,
) -> np.ndarray:
    """A picture ``uint8[H, W, 3]`` of `num` test scans in one column, the same for every network.

    The scans are evenly spaced among all, so that a report can show the columns of several networks side by
    side. cases: rows with scan and dice; both(scan): true and predicted class indices ``[D, H, W]``. The
    axial slice is that with the most true foreground, and the picture is zoomed to it.
    """
    shown = [scans[k] for k in np.unique(np.linspace(0, len(scans) - 1, min(num, len(scans))).astype(int))]
    figure = Figure(figsize=(2.6, 2.85 * max(1, len(shown))), dpi=110, layout="constrained")
    axes = figure.subplots(max(1, len(shown)), 1, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, scan in zip(axes, shown, strict=False):
        name = str(store.collection.table["scan"].iloc[scan])
        found = [case["dice"] for case in cases if case["scan"] == name and case["dice"] is not None]
        _case(axis, store, scan, *both(scan))
        dice = f"Dice {np.mean(found):.3f}" if found else "Dice undefined"
        axis.set_title(f"{shortened(name)}: {dice}", fontsize=8)
    return pixels_of(figure)


def shortened(name: str) -> str:
    """A name with its middle left out if it is long."""
    return (
        name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]}…{name[-LONGEST_NAME // 2 + 1 :]}"
    )


def pixels_of(figure: Figure) -> np.ndarray:
    """Draw a figure as ``uint8[H, W, 3]``."""
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def show_plane(axis: Any, plane: np.ndarray, spacing: np.ndarray) -> None:
    """Draw a plane ``[X, Y]`` with its first axis to the right, its second upwards, and proportions in mm."""
    axis.imshow(plane.T, cmap="gray", origin="lower", aspect=spacing[1] / spacing[0], interpolation="nearest")


def _case(axis: Any, store: Store, scan: int, truth: np.ndarray, predicted: np.ndarray) -> None:
    level = int((truth > 0).sum(axis=(0, 1)).argmax()) if truth.any() else truth.shape[2] // 2
    d, h, _ = (int(n) for n in truth.shape)
    plane = store.read_crop(scan, Box((0, 0, level), (d, h, 1)))[0, :, :, 0]
    show_plane(axis, plane, store.spacing_mm(scan))
    for labels, colour in ((truth[:, :, level], TRUE), (predicted[:, :, level], PREDICTED)):
        for index in np.unique(labels[labels > 0]):
            mask = np.pad(labels == index, 1).astype(float)
            for line in find_contours(mask, 0.5):  # type: ignore[no-untyped-call]  # of scikit-image
                axis.plot(line[:, 0] - 1, line[:, 1] - 1, color=colour, linewidth=1.1)
    _zoom(axis, truth[:, :, level] > 0, store.spacing_mm(scan)[:2])


def _zoom(axis: Any, mask: np.ndarray, spacing: np.ndarray) -> None:
    """Show a square around a mask ``[X, Y]``; the whole plane if the mask is empty."""
    if not mask.any():
        return
    places = np.argwhere(mask)
    low, high = places.min(0), places.max(0)
    half = max(SMALLEST_MM, AROUND * float(((high - low + 1) * spacing).max())) / spacing
    centre = (low + high) / 2
    axis.set_xlim(centre[0] - half[0], centre[0] + half[0])
    axis.set_ylim(centre[1] - half[1], centre[1] + half[1])

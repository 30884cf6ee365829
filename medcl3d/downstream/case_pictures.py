"""Pictures of the best and worst test cases, with true and predicted outlines."""

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


def picture_of_cases(
    store: Store,
    scans: Sequence[int],
    cases: Sequence[Mapping[str, Any]],
    both: Callable[[int], tuple[np.ndarray, np.ndarray]],
    num: int = 3,
) -> np.ndarray:
    """A picture ``uint8[H, W, 3]``: the `num` best test scans by mean Dice, and below them the `num` worst.

    cases: rows with scan and dice; both(scan): true and predicted class indices ``[D, H, W]``. The axial
    slice shown is that with the most foreground in truth and prediction.
    """
    names = store.collection.table["scan"]
    score: dict[int, float] = {}
    for scan in scans:
        found = [
            case["dice"] for case in cases if case["scan"] == names.iloc[scan] and case["dice"] is not None
        ]
        if found:
            score[scan] = float(np.mean(found))
    order = sorted(score, key=lambda scan: -score[scan])
    shown = order if len(order) <= 2 * num else [*order[:num], *order[-num:]]
    columns = min(num, max(1, len(shown)))
    lines = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(2.7 * columns, 2.9 * lines + 0.3), dpi=110, layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, scan in zip(axes, shown, strict=False):
        _case(axis, store, scan, *both(scan))
        axis.set_title(f"{names.iloc[scan]}: Dice {score[scan]:.3f}", fontsize=8)
    figure.suptitle("best and worst cases; green: true, orange: predicted", fontsize=8)
    return pixels_of(figure)


def pixels_of(figure: Figure) -> np.ndarray:
    """Draw a figure as ``uint8[H, W, 3]``."""
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def show_plane(axis: Any, plane: np.ndarray, spacing: np.ndarray) -> None:
    """Draw a plane ``[X, Y]`` with its first axis to the right, its second upwards, and proportions in mm."""
    axis.imshow(plane.T, cmap="gray", origin="lower", aspect=spacing[1] / spacing[0], interpolation="nearest")


def _case(axis: Any, store: Store, scan: int, truth: np.ndarray, predicted: np.ndarray) -> None:
    level = int(((truth > 0) | (predicted > 0)).sum(axis=(0, 1)).argmax())
    d, h, _ = (int(n) for n in truth.shape)
    plane = store.read_crop(scan, Box((0, 0, level), (d, h, 1)))[0, :, :, 0]
    show_plane(axis, plane, store.spacing_mm(scan))
    for labels, colour in ((truth[:, :, level], TRUE), (predicted[:, :, level], PREDICTED)):
        for index in np.unique(labels[labels > 0]):
            mask = np.pad(labels == index, 1).astype(float)
            for line in find_contours(mask, 0.5):  # type: ignore[no-untyped-call]  # of scikit-image
                axis.plot(line[:, 0] - 1, line[:, 1] - 1, color=colour, linewidth=1.1)

"""What a strategy draws, for people to look at: the boxes on the scan, the views, the points."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from medcl3d.data.loader import RawBatch, ScansInUse, make_views
from medcl3d.data.store import Store
from medcl3d.types import Box, PairBatch

COLOURS = ("#e4572e", "#2e86ab", "#3bb273", "#b565d9")
NUM_DOTS = 8


def picture_of_pairs(store: Store, scans: ScansInUse, raw: RawBatch, recipe: Any, num_samples: int = 3) -> np.ndarray:
    """A page ``uint8[H, W, 3]``: a row a sample; its scan with the boxes of the views, then each view as the network sees it.

    Scans are cut axially through the middle of the first view; views through the plane of their middle. Dots
    of one colour are one physical point, drawn in the view's slice nearest to it (hollow: another slice).
    """
    with torch.no_grad():
        batch = make_views(raw, recipe)
    num_views = int((raw.main.keys.sample == raw.main.keys.sample[0]).sum())
    num_samples = min(num_samples, len(raw.main.views) // num_views)
    figure = Figure(figsize=(2.4 * (num_views + 1), 2.5 * num_samples), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(num_samples, num_views + 1, squeeze=False)
    for sample in range(num_samples):
        rows = range(sample * num_views, (sample + 1) * num_views)
        _scan(axes[sample, 0], store, scans, raw, list(rows))
        for column, row in enumerate(rows, 1):
            _view(axes[sample, column], batch, row, sample, COLOURS[(column - 1) % len(COLOURS)])
            axes[0, column].set_title(f"view {column}", fontsize=9)
    axes[0, 0].set_title("scan and boxes", fontsize=9)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _scan(axis: Any, store: Store, scans: ScansInUse, raw: RawBatch, rows: list[int]) -> None:
    first = raw.main.views[rows[0]]
    shape = scans.collection.shapes[first.scan]
    level = int(np.clip(first.box.start[2] + first.box.size[2] // 2, 0, shape[2] - 1))
    plane = store.read_crop(int(scans.rows[first.scan]), Box((0, 0, level), (int(shape[0]), int(shape[1]), 1)))[0, :, :, 0]
    spacing = scans.collection.spacings[first.scan]
    _show(axis, plane, spacing)
    for row in rows:
        box, colour = raw.main.views[row].box, COLOURS[(row - rows[0]) % len(COLOURS)]
        style = "-" if box.start[2] <= level < box.stop[2] else ":"
        corner = (box.start[0] - 0.5, box.start[1] - 0.5)
        axis.add_patch(Rectangle(corner, box.size[0], box.size[1], fill=False, edgecolor=colour, linewidth=1.8, linestyle=style))


def _view(axis: Any, batch: PairBatch, row: int, sample: int, colour: str) -> None:
    voxels = batch.main.voxels[row, 0].float().numpy()
    spacing = batch.main.affine[row, :3, :3].norm(dim=0).numpy()
    middle = voxels.shape[2] // 2
    _show(axis, voxels[:, :, middle], spacing)
    for side in axis.spines.values():
        side.set(visible=True, edgecolor=colour, linewidth=2.5)
    if batch.points is None:
        return
    inverse = torch.linalg.inv(batch.main.affine[row])
    for dot in range(min(NUM_DOTS, int(batch.points.valid[sample].sum()))):
        d, h, w = (inverse[:3, :3] @ batch.points.position_mm[sample, dot] + inverse[:3, 3]).tolist()
        fill = f"C{dot}" if abs(w - middle) < 2 else "none"
        axis.plot(d, h, "o", markersize=5, markerfacecolor=fill, markeredgecolor=f"C{dot}")


def _show(axis: Any, plane: np.ndarray, spacing: np.ndarray) -> None:
    """An axial plane ``[D, H]``: the patient's right to the left of the picture, front upwards."""
    axis.imshow(plane.T, cmap="gray", origin="lower", aspect=spacing[1] / spacing[0], interpolation="nearest")
    axis.set(xticks=[], yticks=[])

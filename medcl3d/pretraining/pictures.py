"""Pictures of pairs: boxes on scans, views, points, and the relation of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from medcl3d.core.batch import PairBatch
from medcl3d.core.geometry import Box, ViewSpec, triple
from medcl3d.core.relation import Relation
from medcl3d.downstream.case_pictures import pixels_of, show_plane
from medcl3d.pretraining.pair_measures import PairFacts
from medcl3d.sampling.augment import make_views
from medcl3d.sampling.raw_batch import RawBatch
from medcl3d.store.scan_selection import ScanSelection
from medcl3d.store.store import Store

COLOURS = ("#e4572e", "#2e86ab", "#3bb273", "#b565d9", "#e9b44c", "#50514f")
ATTRACTED, REPELLED, IGNORED = "#1b7837", "#c2603a", "#e8e8e8"
NUM_DOTS = 8
MAX_VIEWS = 6  # views shown per sample; more would be too small
Plane = tuple[str, int, tuple[int, int], str]  # name, normal axis, in-plane axes, their directions
PLANES: tuple[Plane, ...] = (
    ("sagittal", 0, (1, 2), "AS"),
    ("coronal", 1, (0, 2), "RS"),
    ("axial", 2, (0, 1), "RA"),
)


def picture_of_pairs(
    store: Store, scans: ScanSelection, raw: RawBatch, recipe: Any, num_samples: int = 3
) -> np.ndarray:
    """A picture ``uint8[H, W, 3]`` of samples.

    Each sample shows three planes of each of its scans, through the centre of the first view in that scan,
    with the boxes of all views (dotted: outside the plane). Below are the central axial slices of its views,
    as read and as augmented. Dots of one colour are one physical point (filled: in the shown slice; hollow:
    in another slice).
    """
    with torch.no_grad():
        batch = make_views(raw, recipe)
    ids = torch.unique_consecutive(raw.main.keys.sample)[:num_samples].tolist()
    shown = [_rows_of(raw, sample) for sample in ids]
    num_scans = [len({raw.groups[g].views[row].scan for g, row in rows}) for rows in shown]
    columns, lines = max(3, max(len(rows) for rows in shown)), max(num_scans) + 2
    num_across = min(3, len(ids)) if columns == 3 else 1  # narrow samples are placed side by side
    num_down = -(-len(ids) // num_across)
    figure = Figure(
        figsize=(1.5 * columns * num_across, 1.65 * lines * num_down), dpi=110, layout="constrained"
    )
    parts = figure.subfigures(num_down, num_across, squeeze=False, wspace=0.03).ravel()[: len(ids)]
    for number, (part, rows) in enumerate(zip(parts, shown, strict=True)):
        _sample(part, store, scans, raw, batch, rows, number, columns)
    return pixels_of(figure)


def _rows_of(raw: RawBatch, sample: int) -> list[tuple[int, int]]:
    """(group, row) of each shown view of a sample."""
    found = [
        (g, int(row))
        for g, group in enumerate(raw.groups)
        for row in (group.keys.sample == sample).nonzero().flatten()
    ]
    return found[:MAX_VIEWS]


def _sample(
    part: Any,
    store: Store,
    scans: ScanSelection,
    raw: RawBatch,
    batch: PairBatch,
    rows: list[tuple[int, int]],
    number: int,
    columns: int,
) -> None:
    views = [raw.groups[g].views[row] for g, row in rows]
    shown_scans = list(dict.fromkeys(view.scan for view in views))
    axes = part.subplots(len(shown_scans) + 2, columns, squeeze=False)
    for axis in axes.ravel():
        axis.axis("off")
    for line, scan in zip(axes, shown_scans, strict=False):
        name = scans.collection.table["scan"].iloc[scan]
        for axis, plane in zip(line, PLANES, strict=False):
            axis.axis("on")
            _scan(axis, store, scans, scan, views, plane)
        line[0].set_ylabel(_short(name), fontsize=7)
    for column, (g, row) in enumerate(rows):
        before, after = axes[-2, column], axes[-1, column]
        colour = COLOURS[column % len(COLOURS)]
        for axis in (before, after):
            axis.axis("on")
        raw_views, augmented = raw.groups[g], batch.groups[g]
        _voxels(before, raw_views.crops[row, 0], raw_views.spacing_mm[row], colour)
        _voxels(after, augmented.voxels[row, 0], augmented.affine[row, :3, :3].norm(dim=0), colour)
        role = "" if views[column].role == "global" else f", {views[column].role}"
        before.set_title(f"view {column + 1}{role}", fontsize=8)
        if g == 0 and batch.points is not None:
            _dots(after, batch, row, number)
    axes[-2, 0].set_ylabel("as read", fontsize=7)
    axes[-1, 0].set_ylabel("augmented", fontsize=7)


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:10]}…{name[-10:]}"


def _scan(
    axis: Any, store: Store, scans: ScanSelection, scan: int, views: Sequence[ViewSpec], plane: Plane
) -> None:
    title, normal, (x, y), letters = plane
    shape, spacing = scans.collection.shapes[scan], scans.collection.spacings[scan]
    first = next(view.box for view in views if view.scan == scan)
    level = int(np.clip(first.start[normal] + first.size[normal] // 2, 0, shape[normal] - 1))
    start, size = [0, 0, 0], [int(n) for n in shape]
    start[normal], size[normal] = level, 1
    voxels = store.read_crop(int(scans.rows[scan]), Box(triple(start), triple(size)))[0]
    _show(axis, voxels.squeeze(normal), spacing[[x, y]])
    for number, view in enumerate(views):
        if view.scan != scan:
            continue
        style = "-" if view.box.start[normal] <= level < view.box.stop[normal] else ":"
        corner, colour = (view.box.start[x] - 0.5, view.box.start[y] - 0.5), COLOURS[number % len(COLOURS)]
        drawn: dict[str, Any] = {"fill": False, "edgecolor": colour, "linewidth": 1.6, "linestyle": style}
        axis.add_patch(Rectangle(corner, view.box.size[x], view.box.size[y], **drawn))
    axis.set_title(f"{title} (→{letters[0]}, ↑{letters[1]})", fontsize=7)


def _voxels(axis: Any, voxels: Tensor, spacing: Tensor, colour: str) -> None:
    _show(axis, voxels[:, :, voxels.shape[2] // 2].float().numpy(), spacing.numpy())
    for side in axis.spines.values():
        side.set(visible=True, edgecolor=colour, linewidth=2.5)


def _dots(axis: Any, batch: PairBatch, row: int, sample: int) -> None:
    assert batch.points is not None
    middle = batch.main.voxels.shape[4] // 2
    inverse = torch.linalg.inv(batch.main.affine[row])
    for dot in range(min(NUM_DOTS, int(batch.points.valid[sample].sum()))):
        d, h, w = (inverse[:3, :3] @ batch.points.position_mm[sample, dot] + inverse[:3, 3]).tolist()
        fill = f"C{dot}" if abs(w - middle) < 2 else "none"
        axis.plot(d, h, "o", markersize=5, markerfacecolor=fill, markeredgecolor=f"C{dot}")


def _show(axis: Any, plane: np.ndarray, spacing: np.ndarray) -> None:
    show_plane(axis, plane, spacing)
    axis.set(xticks=[], yticks=[])


def picture_of_relation(facts: PairFacts) -> np.ndarray:
    """A picture ``uint8[H, W, 3]``: the matrix of a relation, its counts, and histograms of distances."""
    figure = Figure(figsize=(12, 6.2), dpi=110, layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1.15, 1])[0]
    _matrix(left.subplots(), facts)
    texts, spread = right.subfigures(2, 1, squeeze=False, height_ratios=[0.8, 1])[:, 0]
    axis = texts.subplots()
    axis.axis("off")
    axis.text(
        0, 1, "\n".join(facts.lines()), va="top", fontsize=10, family="monospace", transform=axis.transAxes
    )
    for axis, (name, values) in zip(spread.subplots(1, len(facts.spread)), facts.spread.items(), strict=True):
        axis.set_title(name, fontsize=8)
        axis.tick_params(labelsize=7)
        if len(values):
            axis.hist(values, bins=20, color=ATTRACTED)
        else:
            axis.text(0.5, 0.5, "unknown", ha="center", va="center", fontsize=8, transform=axis.transAxes)
    return pixels_of(figure)


def _matrix(axis: Any, facts: PairFacts) -> None:
    axis.imshow(colours_of(facts.relation), interpolation="nearest")
    if len(facts.names) <= 40:
        axis.set_xticks(range(len(facts.names)), facts.names, rotation=90, fontsize=6)
        axis.set_yticks(range(len(facts.names)), facts.names, fontsize=6)
    axis.set_title(f"relation of {facts.items} (one row per anchor)", fontsize=9)
    legend = [(ATTRACTED, "attracted (paler: weaker)"), (REPELLED, "repelled"), (IGNORED, "ignored")]
    handles = [Patch(facecolor=colour, label=text) for colour, text in legend]
    axis.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3, fontsize=8, frameon=False
    )


def colours_of(relation: Relation) -> np.ndarray:
    """RGB colours ``Float[N, M, 3]``: green for attraction, orange for repulsion, grey for ignored pairs."""

    positive = relation.positive.double().numpy()[..., None]
    negative = relation.negative.double().numpy()[..., None]
    negative = negative / max(1.0, float(negative.max(initial=0.0)))
    attracted, repelled, ignored = (np.array(to_rgb(colour)) for colour in (ATTRACTED, REPELLED, IGNORED))
    coloured = ignored + positive * (attracted - ignored) + (1 - positive) * negative * (repelled - ignored)
    result: np.ndarray = np.clip(coloured, 0, 1)
    return result

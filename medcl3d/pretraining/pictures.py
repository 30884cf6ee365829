"""Pictures of pairs: anchors with lines to what attracts and repels them, and the relation of a batch."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from medcl3d.core.geometry import Box
from medcl3d.core.relation import Relation
from medcl3d.downstream.case_pictures import pixels_of, show_plane
from medcl3d.pretraining.pair_measures import KINDS, PairFacts
from medcl3d.pretraining.pair_partners import Partner, chosen_anchors, partners_of
from medcl3d.pretraining.shown_batch import ShownBatch, ShownItem

DPI = 100
# Sizes in pixels: a view or scan, the gap with the lines, the bend of a line, a row, the margin.
PANEL, GAP, BEND, ROW, MARGIN = 210, 280, 46, 240, 12
WIDTH = 3 * PANEL + GAP + 3 * MARGIN
MATRIX, LINE, CHARACTERS = 230, 17, 30  # CHARACTERS fit on a line
MATRIX_ROWS = 96  # more would be smaller than pixels
COLOURS = {"attract": "#1b7837", "repel": "#d1642f", "ignore": "#8a8f98", "budget": "#2e6fab"}
WORDS = {
    "attract": "attracts",
    "repel": "repels",
    "ignore": "is ignored",
    "budget": "attracts beyond",
}
ANCHOR = "#d9a413"
PLAIN, STRONGER = "#f3f1ee", COLOURS["repel"]  # repels with M = 1; repels with M > 1
LEGEND = {
    "attracts (paler: weaker)": COLOURS["attract"],
    "ignored (paler: repels less)": COLOURS["ignore"],
    "attracts beyond a distance": COLOURS["budget"],
    "repels more than others": STRONGER,
    "repels": PLAIN,
}
SAME = 0.01  # weights that differ by less have one colour
PLANES = (("sagittal", (1, 2)), ("coronal", (0, 2)), ("axial", (0, 1)))  # by normal axis: in-plane axes
SLAB = 0.7  # a box is a slab if its shortest side is shorter than this part of its longest


def picture_of_pairs(shown: ShownBatch, number: int = 2) -> np.ndarray:
    """A picture ``uint8[H, W, 3]`` of `number` anchors, each with lines to its partners.

    An anchor is on the left: the view as the network gets it, and its scan with its box. Each partner has a
    row: its view, and its scan with its box. The text on a line gives the relation and the reason. A dot is a
    point; its view and scan are shown in the plane through it.
    """
    anchors = chosen_anchors(shown.facts, number, shown.brightness())
    anchors = chosen_anchors(shown.facts, number, shown.brightness())
    stars = [(row, partners_of(shown.facts, row)) for row in anchors]
    heights = [ROW * max(2, len(partners)) + MARGIN for _, partners in stars]
    canvas = Canvas(WIDTH, sum(heights))
    for (row, partners), height, bottom in zip(stars, heights, np.cumsum(heights), strict=True):
        _star(canvas, shown, row, partners, int(bottom) - height, height - MARGIN)
    return pixels_of(canvas.figure)


class Canvas:
    """A figure addressed in pixels from its upper left corner."""

    def __init__(self, width: int, height: int):
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Axes without ticks."""
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        axes: Any = self.figure.add_axes(box)
        axes.set(xticks=[], yticks=[])
        return axes

    def line(self, points: list[tuple[float, float]], colour: str) -> None:
        """A line through some points."""
        x, y = zip(*points, strict=True)
        across, up = [value / self.width for value in x], [1 - value / self.height for value in y]
        self.figure.add_artist(Line2D(across, up, color=colour, linewidth=2))

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        """Text, by default at 9 points."""
        style = {"fontsize": 9, "va": "top", **style}
        self.figure.text(left / self.width, 1 - top / self.height, text, **style)


def _star(
    canvas: Canvas, shown: ShownBatch, row: int, partners: tuple[Partner, ...], top: int, height: int
) -> None:
    """An anchor in the middle of its height, and a row per partner."""
    anchor = shown.item(row)
    items = [shown.item(partner.column) for partner in partners]
    left = top + (height - 2 * ROW) // 2
    canvas.text(MARGIN, left + 4, f"anchor: {_name(shown, anchor)}", fontweight="bold")
    view_top = left + ROW - PANEL
    draw_view(canvas.axes(MARGIN, view_top, PANEL, PANEL), anchor, ANCHOR)
    boxes = [(anchor, ANCHOR)]
    boxes += [(i, COLOURS[p.kind]) for i, p in zip(items, partners, strict=True) if i.scan == anchor.scan]
    _scan(canvas.axes(MARGIN, view_top + PANEL + MARGIN, PANEL, PANEL), shown, anchor, boxes)
    start, end = MARGIN + PANEL, MARGIN + PANEL + GAP
    offset = (height - ROW * len(partners)) // 2
    for number, (item, partner) in enumerate(zip(items, partners, strict=True)):
        above, colour = top + offset + number * ROW, COLOURS[partner.kind]
        middle = above + ROW - PANEL / 2
        canvas.line([(start, view_top + PANEL / 2), (start + BEND, middle), (end, middle)], colour)
        canvas.text(
            start + BEND + 6,
            middle - 4,
            relation_text(shown, row, partner),
            color=colour,
            va="bottom",
            fontweight="bold",
        )
        reason = wrapped(reason_text(shown, row, partner), CHARACTERS)
        canvas.text(start + BEND + 6, middle + 5, reason, linespacing=1.25)
        canvas.text(end, above + 10, _name(shown, item))
        draw_view(canvas.axes(end, above + ROW - PANEL, PANEL, PANEL), item, colour)
        axes = canvas.axes(end + PANEL + MARGIN, above + ROW - PANEL, PANEL, PANEL)
        _scan(axes, shown, item, [(item, colour)])


def relation_text(shown: ShownBatch, row: int, partner: Partner) -> str:
    """The relation of an anchor and a partner in words, with a weight other than 1."""
    relation, word = shown.facts.relation, WORDS[partner.kind]
    if partner.kind == "budget" and relation.budget is not None:
        return f"{word} {float(relation.budget[row, partner.column]):.2f}"
    name, weights = ("P", relation.positive) if partner.kind == "attract" else ("M", relation.negative)
    weight = float(weights[row, partner.column])
    return word if partner.kind == "ignore" or abs(weight - 1) < 0.005 else f"{word}, {name} = {weight:.2f}"


def reason_text(shown: ShownBatch, row: int, partner: Partner) -> str:
    """The reason for the relation of an anchor and a partner."""
    facts, column = shown.facts, partner.column
    similarity = None if facts.similarity is None else float(facts.similarity[row, column])
    text = shown.reasons.text(facts.keys[row : row + 1], facts.columns[column : column + 1], similarity)
    return f"an earlier batch, {text}" if column >= len(facts.keys) else text


def wrapped(text: str, width: int) -> str:
    """Text in lines of at most `width` characters; a number stays with its unit or name."""
    for unit in (" / ", " mm", " days", "IoU ", "cosine "):
        text = text.replace(unit, unit.replace(" ", "\u00a0"))
    return textwrap.fill(text, width)


def _name(shown: ShownBatch, item: ShownItem) -> str:
    name = str(shown.parts.scans.collection.table["scan"].iloc[item.scan])
    name = name if len(name) <= 24 else f"{name[:11]}…{name[-12:]}"
    return name if item.role == "global" else f"{name}, {item.role}"


def _normal(size_mm: np.ndarray, slab: str) -> int:
    """The axis that a plane is normal to: of a slab its shortest or longest side; else the axial plane."""
    if size_mm.min() >= SLAB * size_mm.max():
        return 2
    return int(size_mm.argmin() if slab == "shortest" else size_mm.argmax())


def draw_view(axes: Any, item: ShownItem, colour: str) -> None:
    """The plane of a view through its item, as the network gets it."""
    normal = _normal(np.array(item.voxels.shape) * item.spacing, "shortest")
    level = int(np.clip(round(item.voxel[normal]), 0, item.voxels.shape[normal] - 1))
    _show(axes, item.voxels.take(level, normal), item.spacing, normal)
    if item.is_point:
        _dot(axes, item.voxel, normal, colour)
    for side in axes.spines.values():
        side.set(edgecolor=colour, linewidth=3)


def _scan(axes: Any, shown: ShownBatch, item: ShownItem, boxes: list[tuple[ShownItem, str]]) -> None:
    """The plane of a scan through an item, with boxes."""
    spacing = shown.parts.scans.collection.spacings[item.scan]
    normal = _normal(np.array(item.box.size) * spacing, "longest")
    _show(axes, shown.plane(item.scan, normal, round(item.place[normal])), spacing, normal)
    name, (x, y) = PLANES[normal]
    limits = axes.get_xlim(), axes.get_ylim()
    for other, colour in reversed(boxes):
        _box(axes, other.box, x, y, colour)
        if other.is_point:
            _dot(axes, other.place, normal, colour)
    axes.set(xlim=limits[0], ylim=limits[1])
    axes.text(0.02, 0.02, name, color="white", fontsize=8, transform=axes.transAxes)
    for side in axes.spines.values():
        side.set(visible=False)


def _box(axes: Any, box: Box, x: int, y: int, colour: str) -> None:
    corner = (box.start[x] - 0.5, box.start[y] - 0.5)
    for edge, width in (("white", 3.2), (colour, 2.0)):
        axes.add_patch(
            Rectangle(corner, box.size[x], box.size[y], fill=False, edgecolor=edge, linewidth=width)
        )


def _dot(axes: Any, voxel: np.ndarray, normal: int, colour: str) -> None:
    x, y = PLANES[normal][1]
    axes.plot(voxel[x], voxel[y], "o", markersize=9, markerfacecolor=colour, markeredgecolor="white")


def _show(axes: Any, plane: np.ndarray, spacing: np.ndarray, normal: int) -> None:
    show_plane(axes, plane, spacing[list(PLANES[normal][1])])
    low, high = np.percentile(plane, (0.5, 99.7))
    axes.images[0].set(interpolation="bilinear", clim=(low, max(high, low + 1e-6)))


def picture_of_relation(facts: PairFacts) -> np.ndarray:
    """A picture ``uint8[H, W, 3]``: the relation as a matrix, its counts in words, histograms of pairs."""
    colours, used = matrix_colours(facts)
    items = facts.items if len(colours) == len(facts.keys) else f"the first {len(colours)} {facts.items}"
    canvas = Canvas(WIDTH, MATRIX + 4 * LINE)
    canvas.text(MARGIN, 6, f"relation of {items}, sorted by patient; one row per anchor", fontweight="bold")
    canvas.axes(MARGIN, 28, MATRIX, MATRIX).imshow(colours, interpolation="nearest", aspect="auto")
    left, top = 2 * MARGIN + MATRIX, 34
    for line in facts.lines():
        canvas.text(left, top, line)
        top += LINE
    for text in used:
        top += LINE
        canvas.axes(left, top + 1, 12, 12).set_facecolor(LEGEND[text])
        canvas.text(left + 18, top, text)
    _histograms(canvas, facts, left + 285, 34)
    return pixels_of(canvas.figure)


def _histograms(canvas: Canvas, facts: PairFacts, left: float, top: float) -> None:
    """How the views of a sample differ; what is the same for all, or unknown, has no histogram."""
    varies = {name: values for name, values in facts.spread.items() if len(np.unique(values)) > 1}
    if varies:
        canvas.text(left, top, "two views of one sample:")
    for number, (name, values) in enumerate(varies.items()):
        axes = canvas.axes(left + 138 * number, top + 45, 105, 100)
        axes.hist(values, bins=15, color=COLOURS["attract"])
        axes.set_title(name, fontsize=8)
        axes.set_xticks(ends := [values.min(), values.max()], [f"{end:.3g}" for end in ends])
        axes.tick_params(labelsize=8)
        for side in ("left", "top", "right"):
            axes.spines[side].set_visible(False)


def matrix_colours(facts: PairFacts) -> tuple[np.ndarray, list[str]]:
    """Colours of the relation, items sorted by patient, scan and sample; and the entries of its legend."""
    keys, kinds, relation = facts.keys, facts.kinds(), facts.relation
    sort_by = (keys.view, keys.point, keys.sample, keys.scan, keys.patient)
    rows = np.lexsort([column.numpy() for column in sort_by])[:MATRIX_ROWS]
    queued = np.arange(len(keys), relation.positive.shape[1])[:MATRIX_ROWS]
    colours = np.where((kinds < 0).numpy()[..., None], to_rgb(PLAIN), colours_of(relation))
    weaker = (kinds >= 0) & (relation.positive + relation.negative < 1 - SAME)
    present = [
        (kinds == KINDS.index("attract")).any(),
        (weaker & (kinds != KINDS.index("budget"))).any(),
        (kinds == KINDS.index("budget")).any(),
        (_excess(relation) > 0).any(),
        True,
    ]
    used = [text for text, shown in zip(LEGEND, present, strict=True) if shown]
    return colours[rows][:, np.concatenate([rows, queued])], used


def _excess(relation: Relation) -> np.ndarray:
    """``Float[N, M]``: how much stronger than M = 1 - P a pair repels."""
    excess: np.ndarray = (relation.negative + relation.positive - 1).double().numpy()
    return np.where(excess > SAME, excess, 0.0)


def colours_of(relation: Relation) -> np.ndarray:
    """RGB colours ``Float[N, M, 3]``: only what differs from repulsion with M = 1 has a colour.

    Green for attraction, grey for what is ignored, blue for a budget, orange for stronger repulsion.
    """
    positive = relation.positive.double().numpy()[..., None]
    negative = relation.negative.double().numpy()[..., None]
    plain, attracted, ignored, budget, stronger = (
        np.array(to_rgb(c)) for c in (PLAIN, *(COLOURS[k] for k in ("attract", "ignore", "budget")), STRONGER)
    )
    repelled = np.minimum(negative, 1 - positive)
    coloured = positive * attracted + repelled * plain + (1 - positive - repelled) * ignored
    if relation.budget is not None:
        coloured = np.where(np.isfinite(relation.budget.numpy())[..., None], budget, coloured)
    excess = _excess(relation)
    share = (excess / max(float(excess.max(initial=0.0)), 1e-12))[..., None]
    result: np.ndarray = np.clip(coloured + share * (stronger - coloured), 0, 1)
    return result

"""Figures of a report, each as SVG for light and dark pages."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

from medcl3d.comparison.analysis.analysis import Analysis, ArmNumbers
from medcl3d.comparison.analysis.embedding_maps import NONE, OTHER, EmbeddingMap, shown_columns
from medcl3d.comparison.plan.cells import Cell
from medcl3d.evaluation.statistics.ranks import Ranks

# Okabe and Ito's colours, which colour-blind readers can distinguish, and lighter ones for a dark page.
COLOURS = {
    "light": ("#0072B2", "#D55E00", "#009E73", "#AA3377", "#B8860B", "#56B4E9", "#000000"),
    "dark": ("#6CB8F0", "#FF9D5C", "#3DD6A8", "#F0A3CF", "#F0E442", "#B0C4FF", "#FFFFFF"),
}
INK = {"light": "#24292f", "dark": "#d7dce2"}
FAINT = {"light": "#8a9099", "dark": "#8a9099"}
MARKERS = "osD^vP*"
NARROW = 5.0
"""Inches that a phone shows without horizontal scrolling (a page shrinks text to three quarters at most)."""


@dataclass(frozen=True)
class Picture:
    """A figure: SVG text for light and dark pages, alternative text, and its width in inches."""

    light: str
    dark: str
    alt: str
    width: float


@dataclass(frozen=True)
class Curve:
    """One line of a panel."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


def _draw(width: float, height: float, alt: str, paint: Callable[[Figure, str], None]) -> Picture:
    def render(theme: str) -> str:
        ink = INK[theme]
        style: dict[str, Any] = {
            "text.color": ink, "axes.labelcolor": ink, "axes.edgecolor": FAINT[theme], "xtick.color": ink,
            "ytick.color": ink,
            "axes.spines.top": False, "axes.spines.right": False, "font.size": 11, "svg.hashsalt": "medcl3d",
            "legend.frameon": False,
            "axes.facecolor": "none", "figure.facecolor": "none", "axes.titlesize": 11,
        }  # fmt: skip
        with matplotlib.rc_context(style):  # type: ignore[arg-type]
            figure = Figure(figsize=(width, height), layout="constrained")
            paint(figure, theme)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        return buffer.getvalue()

    return Picture(render("light"), render("dark"), alt, width)


def _style(number: int, theme: str) -> dict[str, Any]:
    """Marker and colour of an arm, a unique combination for the first 49."""
    count = len(MARKERS)
    return {"marker": MARKERS[(number + number // count) % count], "color": COLOURS[theme][number % count]}


def _named(pairs: Cell) -> str:
    return ", ".join(f"{key} {value}" for key, value in pairs)


def _axis(analysis: Analysis) -> str | None:
    """The varied field on the x axis: the number of labels, or the first numeric field."""
    values = {key: {dict(cell)[key] for cell in analysis.cells} for key, _ in analysis.cells[0]}
    varied = {key: of for key, of in values.items() if len(of) > 1}
    numeric = [key for key, of in varied.items() if all(isinstance(value, int | float) for value in of)]
    return "num_labelled" if "num_labelled" in numeric else numeric[0] if numeric else None


def metric_curve(analysis: Analysis) -> Picture | None:
    """The metric over the labels with 95% intervals, a panel per other cell; None if nothing varies."""
    key = _axis(analysis)
    if key is None:
        return None
    panels = list(dict.fromkeys(tuple((k, v) for k, v in cell if k != key) for cell in analysis.cells))
    values = sorted({dict(cell)[key] for cell in analysis.cells})

    def paint(figure: Figure, theme: str) -> None:
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for panel, ax in zip(panels, axes, strict=True):
            cells = [next(c for c in analysis.cells if dict(c) == {**dict(panel), key: v}) for v in values]
            for number, arm in enumerate(analysis.arms):
                chosen = [arm.cells[cell].mean for cell in cells]
                # Arms are side by side within a third of a step, so that intervals do not overlap.
                apart = min(0.05, 0.33 / len(analysis.arms))
                x = [i + apart * (number - (len(analysis.arms) - 1) / 2) for i in range(len(values))]
                # An unknown interval is NaN: no bar.
                bars = [[c.mean - c.low for c in chosen], [c.high - c.mean for c in chosen]]
                line = "--" if arm.name == analysis.reference else "-"
                style = {"linestyle": line, "markersize": 5, **_style(number, theme)}
                ax.errorbar(x, [c.mean for c in chosen], yerr=bars, label=arm.name, capsize=3, **style)
            ax.set_xticks(range(len(values)), [str(v) for v in values])
            ax.set_xlabel(key)
            ax.set_title(_named(panel))
        axes[0].set_ylabel(analysis.metric)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=columns)

    alt = f"Curves of {analysis.metric} over {key}, one line per arm; the numbers are in the table of means"
    width = max(NARROW, 3.4 * len(panels))
    columns = max(1, int(width / (0.6 + 0.09 * max(len(arm.name) for arm in analysis.arms))))
    return _draw(width, 3.4 + 0.24 * -(-len(analysis.arms) // columns), alt, paint)


def difference_dots(analysis: Analysis, order: Sequence[ArmNumbers]) -> Picture | None:
    """Paired differences to the reference at the endpoint, with intervals, in the order of the table of arms;
    None without another arm."""
    arms = [arm for arm in order if arm.endpoint.difference is not None]
    if not arms:
        return None
    label = f"{analysis.metric}: difference to {analysis.reference}"

    def paint(figure: Figure, theme: str) -> None:
        ax = figure.subplots()
        ax.axvline(0, color=FAINT[theme], linewidth=1)
        for row, arm in enumerate(arms):
            d = arm.endpoint.difference
            assert d is not None
            number = [a.name for a in analysis.arms].index(arm.name)
            bars = [[d.mean - d.low], [d.high - d.mean]] if d.known else None
            ax.errorbar([d.mean], [row], xerr=bars, capsize=4, linestyle="none", **_style(number, theme))
            # The name is above its line: a margin for the longest name would be too wide on a narrow screen.
            ax.text(0, row - 0.22, arm.name, transform=ax.get_yaxis_transform(), va="bottom", ha="left")
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
        ax.set_ylim(len(arms) - 0.5, -0.8)
        ax.set_xlabel(label)
        ax.locator_params(axis="x", nbins=6)  # with more, numbers with a sign and three decimals overlap

    what = f"Paired difference of {analysis.metric} to {analysis.reference} for each arm"
    alt = f"{what} with its 95% interval; the numbers are in the table"
    width = max(NARROW, *(0.5 + 0.09 * len(text) for text in (label, *(arm.name for arm in arms))))
    return _draw(width, 0.8 + 0.5 * len(arms), alt, paint)


def loss_panels(panels: Mapping[str, Sequence[Curve]]) -> Picture | None:
    """Training losses; panels have their own axes, since losses of two objectives are not comparable."""
    panels = {title: curves for title, curves in panels.items() if any(len(c.x) for c in curves)}
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)

    def paint(figure: Figure, theme: str) -> None:
        axes: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
        for ax, (title, curves) in zip(axes, panels.items(), strict=False):
            for number, curve in enumerate(curves):
                point = "o" if len(curve.x) == 1 else ""  # a single step has no line
                style: dict[str, Any] = {
                    "linewidth": 1.2,
                    "marker": point,
                    "color": COLOURS[theme][number % 7],
                }
                ax.plot(curve.x, curve.y, label=curve.label, **style)
            ax.set_title(title, fontsize=10)
            ax.tick_params(labelsize=9)
            if 1 < len(curves) <= 6:
                ax.legend(fontsize=8)
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        figure.supxlabel("step", fontsize=10)
        figure.supylabel("loss", fontsize=10)

    alt = f"Training loss over steps of {', '.join(panels)}"
    return _draw(0.3 + 3.4 * columns, 0.2 + 2.2 * rows, alt, paint)


def feature_maps(maps: Sequence[EmbeddingMap]) -> dict[str, Picture]:
    """Embedding maps: crops as dots, one panel per encoder, one picture per column of colours."""
    shown = [(one, shown_columns(one)) for one in maps]
    names = dict.fromkeys(name for _, columns in shown for name in columns)
    return {
        name: _coloured(name, [(one, columns[name]) for one, columns in shown if name in columns])
        for name in names
    }


def _coloured(name: str, panels: Sequence[tuple[EmbeddingMap, np.ndarray]]) -> Picture:
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)

    def paint(figure: Figure, theme: str) -> None:
        axes: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
        for ax in axes:
            ax.set(xticks=[], yticks=[])
            ax.set_visible(False)
        for ax, (one, _) in zip(axes, panels, strict=False):
            ax.set_visible(True)
            ax.set_title(one.encoder)
        places, values = [one.places for one, _ in panels], [values for _, values in panels]
        dots = _dots_of_numbers if values[0].dtype.kind == "f" else _dots_of_names
        dots(figure, axes, places, values, name, theme)

    encoders = ", ".join(one.encoder for one, _ in panels)
    alt = f"Embedding maps of crops, coloured by {name}, for {encoders}"
    return _draw(0.2 + 2.5 * columns, 0.9 + 2.5 * rows, alt, paint)


Columns = Sequence[np.ndarray]


def _dots_of_numbers(
    figure: Figure, axes: Sequence[Axes], places: Columns, values: Columns, name: str, theme: str
) -> None:
    ends = (0.0, 0.9) if theme == "light" else (0.25, 1.0)  # without colours close to the page's background
    colours = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(*ends, 256)))
    scale = Normalize(np.nanmin(np.concatenate(values)), np.nanmax(np.concatenate(values)))
    for ax, at, what in zip(axes, places, values, strict=False):
        dots = ax.scatter(at[:, 0], at[:, 1], c=what, s=12, cmap=colours, norm=scale, linewidths=0)
    figure.colorbar(dots, ax=list(axes), location="top", shrink=0.4, aspect=40, label=name)


def _dots_of_names(
    figure: Figure, axes: Sequence[Axes], places: Columns, values: Columns, name: str, theme: str
) -> None:
    names = sorted(set(np.concatenate(values).tolist()) - {OTHER, NONE})
    styles: dict[str, dict[str, Any]] = {
        NONE: {"facecolors": "none", "edgecolors": FAINT[theme], "linewidths": 0.6, "s": 12},
        OTHER: {"facecolors": FAINT[theme], "linewidths": 0, "s": 12},
    }
    colours = COLOURS[theme]
    for k, one in enumerate(names):
        styles[one] = {"facecolors": colours[k % len(colours)], "linewidths": 0, "s": 20}
    found: dict[str, Any] = {}
    for ax, at, what in zip(axes, places, values, strict=False):
        for one, style in styles.items():
            rows = at[what == one]
            if len(rows):
                found[one] = ax.scatter(rows[:, 0], rows[:, 1], **style)
    order = [one for one in (*names, OTHER, NONE) if one in found]
    # One legend above all panels: inside a panel it would hide dots.
    place: dict[str, Any] = {"loc": "outside upper center", "ncols": min(4, len(order))}
    figure.legend([found[one] for one in order], order, title=name, fontsize=10, **place)


def rank_line(arms: Sequence[str], found: Ranks) -> Picture:
    """Mean ranks on a line, with bars under arms within a critical difference (Demsar, JMLR 2006)."""
    order = sorted(range(len(arms)), key=lambda arm: found.mean[arm])
    groups = found.groups()

    def paint(figure: Figure, theme: str) -> None:
        ax = figure.subplots()
        ax.set_xlim(0.8, len(arms) + 0.2)
        ax.set_ylim(-len(arms) - 0.3 * len(groups) - 0.8, 0.9)
        ax.xaxis.tick_top()
        ax.xaxis.set_label_position("top")
        ax.set_xlabel(f"mean rank over {found.num_sets} data sets (1 is best)")
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
        ax.spines["bottom"].set_visible(False)
        ax.spines["top"].set_visible(True)
        ax.plot([1, 1 + found.critical], [0.5, 0.5], color=FAINT[theme], linewidth=3)
        style: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 8, "color": INK[theme]}
        ax.text(1 + found.critical / 2, 0.55, "critical difference", **style)
        for number, group in enumerate(groups):
            ends = [found.mean[group[0]] - 0.04, found.mean[group[-1]] + 0.04]
            ax.plot(ends, [-0.3 * (number + 1)] * 2, color=INK[theme], linewidth=3)
        below = 0.3 * len(groups)
        for row, arm in enumerate(order):
            colour, y = COLOURS[theme][arm % 7], -below - 0.7 - row
            ax.plot([found.mean[arm]] * 2, [0.9, y], color=colour, linewidth=1)
            left = found.mean[arm] > (1 + len(arms)) / 2  # keeps long names inside the picture
            place, side = found.mean[arm] + (-0.05 if left else 0.05), "right" if left else "left"
            style = {"va": "center", "ha": side, "fontsize": 9, "color": colour}
            ax.text(place, y, f"{arms[arm]} ({found.mean[arm]:.2f})", **style)

    means = ", ".join(f"{arms[arm]} {found.mean[arm]:.2f}" for arm in order)
    alt = f"Mean ranks over {found.num_sets} data sets: {means}"
    return _draw(7.0, 1.4 + 0.34 * len(arms) + 0.1 * len(groups), alt, paint)

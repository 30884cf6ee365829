"""`medcl3d show_pairs`: what a configuration's strategy draws and relates, as one picture, before any training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medcl3d.config import load
from medcl3d.data.atomic import replacing
from medcl3d.errors import ConfigError
from medcl3d.training.distributed import say
from medcl3d.training.pictures import picture_of_pairs
from medcl3d.training.pretrain import PretrainConfig, assemble, summary
from medcl3d.types import Keys, Relation


def show_pairs(config_path: Path, overrides: Sequence[str], out: Path) -> None:
    """Write a PNG: views of the first batch with their boxes, and the relation of that batch. ConfigError, DataError."""
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out {out}: the picture is a PNG; give a name that ends in .png")
    parts = assemble(load(config_path, overrides, PretrainConfig))
    say(summary(parts))
    raw = parts.dataset()[0]
    relation = parts.strategy.relate(raw.keys, raw.keys, None)
    out.parent.mkdir(parents=True, exist_ok=True)
    views = picture_of_pairs(parts.store, parts.scans, raw, parts.learner.recipe)
    with replacing(out) as file:
        _page(views, relation, raw.keys).savefig(file, format="png", dpi=110)
    say(str(out))


def _page(views: np.ndarray, relation: Relation, keys: Keys) -> Figure:
    """The views above, attraction and repulsion of all views of the batch below."""
    width = views.shape[1] / 110
    figure = Figure(figsize=(width, views.shape[0] / 110 + 0.55 * width), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=[views.shape[0] / 110, 0.55 * width]).ravel()
    axis = top.subplots()
    axis.imshow(views)
    axis.axis("off")
    ticks = [f"{int(sample)}.{int(view)}" for sample, view in zip(keys.sample, keys.view, strict=True)]
    parts = (("attraction P", relation.positive), ("repulsion M", relation.negative))
    for axis, (title, matrix) in zip(bottom.subplots(1, 2), parts, strict=True):
        image = axis.imshow(matrix.numpy(), cmap="viridis", vmin=0, vmax=max(1.0, float(matrix.max())))
        axis.set_title(f"{title} (sample.view)", fontsize=9)
        axis.set_xticks(range(len(ticks)), ticks, rotation=90, fontsize=6)
        axis.set_yticks(range(len(ticks)), ticks, fontsize=6)
        figure.colorbar(image, ax=axis, shrink=0.8)
    return figure

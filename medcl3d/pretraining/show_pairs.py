"""`medcl3d show_pairs`: a picture or page of the pairs of a configuration, before any training."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.image import imsave

from medcl3d.config.loading import load
from medcl3d.core.errors import ConfigError
from medcl3d.distributed.collectives import say
from medcl3d.io.atomic import open_atomic, write_text
from medcl3d.io.disk_space import require_writable
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.pair_audit import audit_by_structures
from medcl3d.pretraining.pair_measures import PairFacts, distances_of, facts_of
from medcl3d.pretraining.parts import Pretraining, assemble
from medcl3d.pretraining.pictures import picture_of_pairs, picture_of_relation
from medcl3d.pretraining.summary import summary

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }}
img {{ max-width: 100%; height: auto; background: white; }}
table {{ border-collapse: collapse; }} td {{ padding: .2rem 1rem .2rem 0; border-bottom: 1px solid #8885; }}
td + td {{ text-align: right; font-variant-numeric: tabular-nums; }} pre {{ overflow-x: auto; }}
</style></head><body>
<h1>{title}</h1><pre>{summary}</pre>
<h2>Samples</h2>
<img alt="For {samples} samples: the scans in three planes with the boxes of the views,
 the views as read and as augmented" src="{pairs}">
<h2>Relation of one batch</h2>
<table>{counts}</table>
<img alt="The relation of the batch as a matrix, and the distances of its pairs" src="{relation}">
<h2>Pair audit</h2><pre>{audit}</pre>
<h2>Configuration</h2><pre>{config}</pre>
</body></html>
"""


def show_pairs(
    config_path: Path,
    overrides: Sequence[str],
    out: Path,
    page: bool = False,
    num_samples: int = 3,
    check: bool = False,
) -> PairFacts | None:
    """Write a PNG of the first batch (samples, relation, counts); with `page` also an HTML file.

    Returns the facts of the batch; None with `check`, which draws nothing.
    """
    if out.suffix.lower() != ".png":
        raise ConfigError(
            problem="the picture is a PNG", remedy="use a name that ends in .png", place=f"--out {out}"
        )
    parts = assemble(load(config_path, overrides, PretrainConfig))
    say(summary(parts))
    require_writable(out.parent, "--out")
    if check:
        return None
    raw = parts.dataset()[0]
    facts = facts_of(raw, parts.learner.relating, parts.learner.recipe)
    pairs = picture_of_pairs(parts.store, parts.scans, raw, parts.learner.recipe, num_samples)
    relation = picture_of_relation(facts)
    out.parent.mkdir(parents=True, exist_ok=True)
    with open_atomic(out) as file:
        file.write(_png(_above(pairs, relation)))
    audit = audit_by_structures(parts)
    audited = ["no pair audit: no item is in a structure of a label map"] if audit is None else audit.lines()
    say("\n".join([*facts.lines(), *distances_of([facts]).lines(), *audited]))
    say(str(out))
    if page:
        write_text(out.with_suffix(".html"), _page(parts, facts, pairs, relation, config_path, audited))
        say(str(out.with_suffix(".html")))
    return facts


def _page(
    parts: Pretraining,
    facts: PairFacts,
    pairs: np.ndarray,
    relation: np.ndarray,
    config_path: Path,
    audited: list[str],
) -> str:
    """A self-contained HTML page."""
    rows = (line.rsplit(maxsplit=1) for line in facts.lines())
    return PAGE.format(
        title=html.escape(f"Pairs of {config_path.stem}"),
        summary=html.escape(summary(parts)),
        samples=min(3, len(parts.anchors.ids)),
        counts="".join(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in rows
        ),
        audit=html.escape("\n".join(audited)),
        config=html.escape(config_path.read_text(encoding="utf-8")),
        pairs=_embedded(pairs),
        relation=_embedded(relation),
    )


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    imsave(buffer, image, format="png")
    return buffer.getvalue()


def _embedded(image: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(_png(image)).decode()


def _above(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Stack two pictures; the narrower one is padded with white."""
    width = max(top.shape[1], bottom.shape[1])
    padded = [
        np.pad(image, ((0, 0), (0, width - image.shape[1]), (0, 0)), constant_values=255)
        for image in (top, bottom)
    ]
    return np.concatenate(padded)

"""`medcl3d show_pairs`: a picture or page of the pairs of a configuration, before any training."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from matplotlib.image import imsave

from medcl3d.config.loading import load
from medcl3d.config.plain import plain
from medcl3d.core.errors import ConfigError
from medcl3d.distributed.collectives import say
from medcl3d.downstream.transfer import load_weights
from medcl3d.io.atomic import open_atomic, write_text
from medcl3d.io.disk_space import require_writable
from medcl3d.pairs import needs_features
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.pair_audit import audit_by_structures
from medcl3d.pretraining.pair_measures import PairFacts, distances_of
from medcl3d.pretraining.parts import Pretraining, assemble
from medcl3d.pretraining.pictures import picture_of_pairs, picture_of_relation
from medcl3d.pretraining.shown_batch import shown_batch
from medcl3d.pretraining.summary import summary

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 1rem auto; padding: 0 1rem; }}
figure {{ margin: 0; overflow-x: auto; }} img {{ min-width: 44rem; max-width: 100%; background: white; }}
pre {{ overflow-x: auto; font-size: .85rem; }}
</style></head><body>
<h1>{title}</h1><p>{caption}</p>
<figure><img alt="Anchors with lines to what they attract and repel, and why" src="{pairs}"></figure>
<h2>Relation of one batch</h2>
<figure><img alt="The relation of the batch as a matrix, with its counts" src="{relation}"></figure>
<pre>{counts}</pre>
<h2>Pair audit</h2><pre>{audit}</pre>
<h2>Summary</h2><pre>{summary}</pre>
<h2>Configuration, with all defaults</h2><pre>{config}</pre>
</body></html>
"""


def show_pairs(
    config_path: Path,
    overrides: Sequence[str],
    out: Path,
    page: bool = False,
    num_anchors: int = 2,
    encoder: Path | None = None,
    check: bool = False,
) -> PairFacts | None:
    """Write a PNG of the first batch (anchors and their partners, relation); with `page` also an HTML file.

    encoder: run folder of a pretraining, for strategies whose pairs depend on features; by default they are
    those of the untrained network. Returns the facts of the batch; None with `check`, which draws nothing.
    """
    if out.suffix.lower() != ".png":
        raise ConfigError(
            problem="the picture is a PNG", remedy="use a name that ends in .png", place=f"--out {out}"
        )
    parts = assemble(load(config_path, overrides, PretrainConfig))
    network = parts.learner.network
    if encoder is not None:
        load_weights(network, encoder, "encoder")
    say(summary(parts))
    require_writable(out.parent, "--out")
    if check:
        return None
    shown = shown_batch(parts)
    pairs, relation = picture_of_pairs(shown, num_anchors), picture_of_relation(shown.facts)
    out.parent.mkdir(parents=True, exist_ok=True)
    with open_atomic(out) as file:
        file.write(_png(np.concatenate([pairs, relation])))
    audit = audit_by_structures(parts, None if encoder is None else network)
    audited = ["no pair audit: no item is in a structure of a label map"] if audit is None else audit.lines()
    counted = [*shown.facts.lines(), *distances_of([shown.facts]).lines()]
    caption = caption_of(parts, encoder)
    say("\n".join([*counted, *audited, caption, str(out)]))
    if page:
        texts = {
            "title": f"Pairs of {config_path.stem}",
            "caption": caption,
            "counts": "\n".join(counted),
            "audit": "\n".join(audited),
            "summary": summary(parts),
            "config": yaml.safe_dump(plain(parts.config), sort_keys=False),
        }
        escaped = {name: html.escape(text) for name, text in texts.items()}
        written = PAGE.format(**escaped, pairs=_embedded(pairs), relation=_embedded(relation))
        write_text(out.with_suffix(".html"), written)
        say(str(out.with_suffix(".html")))
    return shown.facts


def caption_of(parts: Pretraining, encoder: Path | None = None) -> str:
    """One sentence for a picture of pairs."""
    text = (
        f"{parts.config.pairs.name}: each anchor (yellow) with views that it attracts (green), ignores "
        "(grey) and repels (orange), the reason on the line, and beside each view its scan with its box"
    )
    if needs_features(parts.strategy):
        text += f"; features of {'the untrained encoder' if encoder is None else encoder}"
    return f"{text}."


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    imsave(buffer, image, format="png")
    return buffer.getvalue()


def _embedded(image: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(_png(image)).decode()

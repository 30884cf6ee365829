"""Draw the pictures of the strategies' pages and their poster from the pages' configurations, on real scans.

``make pictures`` prepares the sets below `DATA` and draws all; ``python docs/strategies/draw.py NAME ...``
draws some, without the poster.
"""

from __future__ import annotations

import re
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from medcl3d.pretraining.shown_batch import ShownBatch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

DATA = Path("data/pictures")
SETS = {
    "ixi40": "IXI (brain-development.org, CC BY-SA 3.0)",
    "ms_longitudinal": "the longitudinal MS scans of Lesjak et al., Neuroinformatics 2016 (CC BY)",
}
# Strategies shown and measured on scans of several visits and modalities; all others on ixi40.
VISITS = ("same_patient", "longitudinal", "time_decay", "cross_modality", "exclude", "sum")
# Overrides of a page's configuration for the columns of these sets.
CHANGES = {
    "composed_kernels": (
        "pairs={composed_kernels: {columns: {age: 5}, site: sex, sigma_mm: 30, group_size: 4}}",
    ),
    "cross_modality": ("pairs={cross_modality: {modalities: [T1w, T2w], across_frames: body}}",),
}
LOCAL = {"multi_crop": ("pairs.multi_crop.local_size=[24, 24, 24]",)}  # half of the patch
SHOWN = ("data.patch_size=[48, 48, 48]", "train.samples_per_step=16")
# Strategies whose pairs depend on features, shown after a short training on crops of 32 voxels.
FEATURES = ("hard_negatives", "nearest_neighbours", "cycle_voxels")
STEPS = 60
TRAINING = (f"train.steps={STEPS}", "encoder={unet3d: {channels: [8, 16, 32, 64], strides: [2, 2, 2, 2]}}")
QUALITY = 85  # of WebP, in which a picture takes half the space of a PNG of 64 colours
# Of the poster, in pixels: a crop, the line beside it, the title and the text of a tile; tiles side by side.
CROP, GAP, TITLE, TEXT, ACROSS, CHARACTERS = 88, 18, 22, 62, 3, 27


def configuration(page: Path) -> str:
    """The YAML of a page. ValueError if it has none, or several."""
    (found,) = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


def pages() -> list[Path]:
    """The pages of all strategies."""
    return sorted(
        page for page in HERE.glob("*.md") if page.stem not in ("index", "write_your_own", "recovery")
    )


def set_of(page: Path) -> str:
    """The set that a page is shown and measured on."""
    return "ms_longitudinal" if page.stem in VISITS else "ixi40"


def batch_of(page: Path) -> ShownBatch:
    """The first batch of a page's configuration on its set."""
    from medcl3d.config.loading import load
    from medcl3d.downstream.transfer import load_weights
    from medcl3d.pretraining.config import PretrainConfig
    from medcl3d.pretraining.parts import assemble
    from medcl3d.pretraining.pretrain import pretrain
    from medcl3d.pretraining.shown_batch import shown_batch

    name = page.stem
    trained = name in FEATURES
    settings = (
        f"data.root={DATA / set_of(page)}",
        *CHANGES.get(name, ()),
        *LOCAL.get(name, ()),
        *(TRAINING if trained else ()),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.yaml"
        path.write_text(configuration(page), encoding="utf-8")
        parts = assemble(load(path, (*settings, *SHOWN), PretrainConfig))
        if trained:
            run = pretrain(path, (*settings, f"out_dir={DATA / 'runs' / name}"))
            load_weights(parts.learner.network, run, "encoder")
    return shown_batch(parts)


def caption(page: Path) -> str:
    """One sentence below the picture of a page."""
    trained = f" after {STEPS} steps of training" if page.stem in FEATURES else ""
    return (
        f"*An anchor (yellow) of {SETS[set_of(page)]} with what `{page.stem}` attracts (green), ignores "
        f"(grey) and repels (orange) in its batch{trained}; the reason is on the line, and beside each view "
        "is its scan.*"
    )


def with_picture(text: str, page: Path) -> str:
    """Insert the picture of a page and its caption after its title."""
    title, rest = text.split("\n", 1)
    rest = re.sub(
        r"\n!\[[^\]]*\]\(pictures/[^)]*\)\n(\n\*An anchor.*?\*\n)?", "", rest, count=1, flags=re.DOTALL
    )
    picture = f"![Anchor, partners and relation of {page.stem}](pictures/{page.stem}.webp)"
    lines = textwrap.fill(caption(page), 120)
    return f"{title}\n\n{picture}\n\n{lines}\n{rest}"


def save(pixels: np.ndarray, path: Path) -> None:
    """Write a picture as WebP."""
    from PIL import Image

    Image.fromarray(pixels).save(path, quality=QUALITY, method=6)


def poster(batches: dict[str, ShownBatch]) -> np.ndarray:
    """All strategies: an anchor between what it attracts and what it repels or ignores, with the reasons."""
    from medcl3d.downstream.case_pictures import pixels_of
    from medcl3d.pretraining.pictures import Canvas

    width, height = 3 * CROP + 2 * GAP + 16, TITLE + CROP + TEXT
    canvas = Canvas(ACROSS * width + 8, -(-len(batches) // ACROSS) * height + 8)
    for number, (name, shown) in enumerate(batches.items()):
        tile(canvas, name, shown, 8 + number % ACROSS * width, 6 + number // ACROSS * height)
    return pixels_of(canvas.figure)


def tile(canvas, name: str, shown: ShownBatch, left: int, top: int) -> None:  # type: ignore[no-untyped-def]
    """One strategy of the poster."""
    from medcl3d.pretraining.pair_partners import chosen_anchors, partners_of
    from medcl3d.pretraining.pictures import ANCHOR, COLOURS, draw_view, reason_text, relation_text, wrapped

    (row,) = chosen_anchors(shown.facts, 1, shown.brightness())
    partners = partners_of(shown.facts, row)
    positive = [partner for partner in partners if partner.kind == "attract"][-1]
    kinds = ("budget", "ignore" if name in ("exclude", "multi_crop") else "repel", "repel")
    other = next(partner for kind in kinds for partner in partners if partner.kind == kind)
    canvas.text(left, top, name, fontweight="bold")
    below, middle = top + TITLE + CROP + 5, top + TITLE + CROP / 2
    draw_view(canvas.axes(left + CROP + GAP, top + TITLE, CROP, CROP), shown.item(row), ANCHOR)
    right = left + 2 * (CROP + GAP)
    for place, partner, align in ((left, positive, "left"), (right, other, "right")):
        colour = COLOURS[partner.kind]
        start = left + CROP if align == "left" else right - GAP
        canvas.line([(start, middle), (start + GAP, middle)], colour)
        draw_view(canvas.axes(place, top + TITLE, CROP, CROP), shown.item(partner.column), colour)
        text = f"{relation_text(shown, row, partner)}: {reason_text(shown, row, partner)}"
        edge = place if align == "left" else place + CROP
        lines = wrapped(text, CHARACTERS)
        canvas.text(edge, below, lines, fontsize=7, color=colour, ha=align, linespacing=1.15)


def main(names: list[str]) -> None:
    """Draw the named strategies; without names all of them and the poster."""
    import numpy as np

    from medcl3d.pretraining.pictures import picture_of_pairs, picture_of_relation

    (HERE / "pictures").mkdir(exist_ok=True)
    batches = {}
    for page in pages():
        if names and page.stem not in names:
            continue
        batches[page.stem] = shown = batch_of(page)
        pixels = np.concatenate([picture_of_pairs(shown, 1), picture_of_relation(shown.facts)])
        save(pixels, HERE / "pictures" / f"{page.stem}.webp")
        page.write_text(with_picture(page.read_text(encoding="utf-8"), page), encoding="utf-8")
        print(page.stem)
    if not names:
        save(poster(batches), HERE / "pictures" / "poster.webp")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Measure distances of a strategy's positives and negatives on real scans; ``make measured`` writes them to
the pages.

``python docs/strategies/measure.py [NAME ...]`` needs the sets below `DATA`, prepared with the command on the
page.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from draw import CHANGES, configuration, pages, set_of

from medcl3d.config.loading import load
from medcl3d.io.atomic import write_text
from medcl3d.pairs import needs_features
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.pair_measures import distances_of, facts_of
from medcl3d.pretraining.parts import assemble

DATA = Path("data/measured")
PREPARE = "medcl3d prepare bids PATH/TO/{0} --out {1}/{0} 'spacing_mm=[4, 4, 4]'"
BATCHES, SEED = 20, 0
SETTINGS = (
    "data.patch_size=[16, 16, 16]",
    "train.samples_per_step=16",
    f"seed={SEED}",
    "encoder={unet3d: {channels: [4, 8], strides: [1, 2]}}",
)
LOCAL = {"multi_crop": ("pairs.multi_crop.local_size=[8, 8, 8]",)}  # half of the patch
BEGIN, END = "<!-- measured -->\n", "<!-- /measured -->\n"


def measured(page: Path, root: Path, changes: Sequence[str] = (), batches: int = BATCHES) -> list[str]:
    """The figures of a page's configuration on a prepared set."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{page.stem}.yaml"
        path.write_text(configuration(page), encoding="utf-8")
        parts = assemble(load(path, (*SETTINGS, f"data.root={root}", *changes), PretrainConfig))
    dataset, learner = parts.dataset(), parts.learner
    found = distances_of(
        facts_of(dataset[step], learner.relating, learner.recipe) for step in range(batches)
    ).lines()
    if needs_features(parts.strategy):
        found.append("before training: without pairs and weights that depend on a whole batch")
    return found


def line(page: Path, root: Path = DATA) -> str:
    """The text of a page: set, preparation, figures, command."""
    name = set_of(page)
    changes = (*CHANGES.get(page.stem, ()), *LOCAL.get(page.stem, ()))
    figures = measured(page, root / name, changes)
    if changes:
        figures.append(f"with `{'`, `'.join(changes)}`")
    listed = "\n".join(f"- {figure}" for figure in figures)
    return (
        f"**Measured** on {name} at 4 mm, {BATCHES} batches of 16 samples, crops of 16 voxels a side, "
        f"seed {SEED};\n"
        "median (10% to 90%):\n\n"
        f"{listed}\n\n`python docs/strategies/measure.py {page.stem}` after\n`{PREPARE.format(name, DATA)}`\n"
    )


def with_line(text: str, found: str) -> str:
    """Insert the measured text of a page before its configuration."""
    text = re.sub(f"{BEGIN}.*?{END}\n", "", text, flags=re.DOTALL)
    return text.replace("```yaml\n", f"{BEGIN}{found}{END}\n```yaml\n", 1)


def main(names: Sequence[str]) -> None:
    """Measure the named strategies, all by default."""
    for page in pages():
        if not names or page.stem in names:
            found = line(page)
            print(f"{page.stem}\n{found}")
            write_text(page, with_line(page.read_text(encoding="utf-8"), found))


if __name__ == "__main__":
    main(sys.argv[1:])

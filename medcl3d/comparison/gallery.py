"""Pictures that runs left, for a report: what the strategies pair, and the best and worst cases of every arm."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medcl3d.comparison.analysis import Analysis
from medcl3d.comparison.config import CompareConfig
from medcl3d.comparison.kinds import Kind
from medcl3d.comparison.plan import Run


@dataclass(frozen=True)
class Shown:
    """An image as a data URI, what it shows in words, and the line below it."""

    uri: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Pairing:
    """What strategies pair: views that are drawn together, which of a batch attract and repel, and what must be said of controls."""

    drawn: tuple[Shown, ...]
    related: tuple[Shown, ...]
    notes: tuple[str, ...]


def png_uri(path: Path) -> str:
    """A PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def first_runs(analysis: Analysis, runs: Sequence[Run]) -> list[Run]:
    """Of the first replicate, the runs that stand for it."""
    return [run for run in runs if run.seed == analysis.replicates[0] and run.shown]


def pairing(analysis: Analysis, runs: Sequence[Run], config: CompareConfig) -> Pairing:
    """Pictures of the pretrainings of the first replicate; those that draw or relate alike share one, and what has no pairs has none."""
    kinds = {arm.pretraining: analysis.kinds[name] for name, arm in config.arms.items() if arm.pretraining is not None}
    pretrained = [run for run in first_runs(analysis, runs) if not run.measures]
    pairs = [run for run in pretrained if kinds[run.name] != "mae"]
    return Pairing(
        tuple(_shared(pairs, "pairs.png", "Views that are drawn together", kinds)),
        tuple(_shared(pairs, "relation.png", "Which things of a batch attract and which repel", kinds)),
        tuple(_notes([run.name for run in pretrained], kinds)),
    )


def _shared(runs: Sequence[Run], file: str, what: str, kinds: dict[str, Kind]) -> Iterable[Shown]:
    names: dict[str, list[str]] = {}
    for run in runs:
        path = run.folder / "pictures" / file
        if path.is_file():
            names.setdefault(png_uri(path), []).append(f"“{run.name}”" + (" (placebo)" if kinds[run.name] == "placebo" else ""))
    for uri, of in names.items():
        caption = f"{', '.join(of)}{', which look alike here' if len(of) > 1 else ''}"
        yield Shown(uri, f"{what}: {', '.join(of)}", caption)


def _notes(names: Sequence[str], kinds: dict[str, Kind]) -> Iterable[str]:
    placebos = [f"“{name}”" for name in names if kinds[name] == "placebo"]
    if placebos:
        yield f"{', '.join(placebos)}: the rule of the strategy, with what it knows of the scans permuted among them."
    without = [f"“{name}”" for name in names if kinds[name] == "mae"]
    if without:
        yield f"{', '.join(without)}: no pairs and no picture, since it paints in what is hidden of single crops."


def cases(analysis: Analysis, runs: Sequence[Run], side: str) -> list[Shown]:
    """The best and the worst cases of every arm in the last cell of the first replicate. side: whose patients were measured."""
    # Of the cells, the last stands for all: it is the one with the most labels as people write them.
    chosen = [run for run in first_runs(analysis, runs) if run.measures and run.cell == analysis.cells[-1]]
    files = [(run, run.folder / "pictures" / "cases.png") for run in chosen]
    alt = f"Best and worst {side} cases with true and predicted outlines"
    return [Shown(png_uri(file), f"{alt}: {run.name}", run.name) for run, file in files if file.is_file()]

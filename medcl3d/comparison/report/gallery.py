"""Pictures from run folders for a report: pairs of each strategy, best and worst cases of every arm."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medcl3d.comparison.analysis.analysis import Analysis
from medcl3d.comparison.plan.arm_types import ArmType
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.runs import Run
from medcl3d.comparison.report.ranking_table import ranking_table


@dataclass(frozen=True)
class EmbeddedPicture:
    """An image as a data URI, its alternative text, and its caption."""

    uri: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Pairing:
    """Pictures of pairs: views drawn together, items that attract and repel, and notes on controls."""

    drawn: tuple[EmbeddedPicture, ...]
    related: tuple[EmbeddedPicture, ...]
    notes: tuple[str, ...]


def png_uri(path: Path) -> str:
    """A PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def first_runs(analysis: Analysis, runs: Sequence[Run]) -> list[Run]:
    """The runs that represent the first replicate."""
    return [run for run in runs if run.seed == analysis.replicates[0] and run.represents_replicate]


def pairing(analysis: Analysis, runs: Sequence[Run], config: CompareConfig) -> Pairing:
    """Pictures of the first replicate's pretrainings; identical pictures are shown once, and MAE has none."""
    types = {arm.pretraining: analysis.arm_types[name] for name, arm in config.arms.items()}
    arm_types = {name: kind for name, kind in types.items() if name is not None}
    pretrained = [run for run in first_runs(analysis, runs) if not run.measures]
    pairs = [run for run in pretrained if arm_types[run.name] != "mae"]
    return Pairing(
        tuple(_shared(pairs, "pairs.png", "Views that are drawn together", arm_types)),
        tuple(_shared(pairs, "relation.png", "Items of a batch that attract and repel", arm_types)),
        tuple(_notes([run.name for run in pretrained], arm_types)),
    )


def _shared(
    runs: Sequence[Run], file: str, what: str, arm_types: dict[str, ArmType]
) -> Iterable[EmbeddedPicture]:
    names: dict[str, list[str]] = {}
    for run in runs:
        path = run.folder / "pictures" / file
        if path.is_file():
            placebo = " (placebo)" if arm_types[run.name] == "placebo" else ""
            names.setdefault(png_uri(path), []).append(f"“{run.name}”{placebo}")
    for uri, of in names.items():
        caption = f"{', '.join(of)}{' (identical pictures)' if len(of) > 1 else ''}"
        yield EmbeddedPicture(uri, f"{what}: {', '.join(of)}", caption)


def _notes(names: Sequence[str], arm_types: dict[str, ArmType]) -> Iterable[str]:
    placebos = [f"“{name}”" for name in names if arm_types[name] == "placebo"]
    if placebos:
        yield f"{', '.join(placebos)}: the strategy with its signal columns permuted among the scans."
    without = [f"“{name}”" for name in names if arm_types[name] == "mae"]
    if without:
        reason = "since it reconstructs masked blocks of single crops"
        yield f"{', '.join(without)}: no pairs and no picture, {reason}."


def cases(analysis: Analysis, runs: Sequence[Run], side: str) -> tuple[list[EmbeddedPicture], bool]:
    """Cases of every arm, best arm first, in the last cell of the first replicate; whether they are the same.

    Older runs have a picture of their own best and worst cases only. side: test or validation.
    """
    # The last cell represents all: usually it has the most labels.
    chosen = [run for run in first_runs(analysis, runs) if run.measures and run.cell == analysis.cells[-1]]
    same = any((run.folder / "pictures" / "same_cases.png").is_file() for run in chosen)
    what = f"{'The same' if same else 'Best and worst'} {side} cases with true and predicted outlines"
    name = f"{'same_' if same else ''}cases.png"
    files = {run.name: run.folder / "pictures" / name for run in chosen}
    shown = {arm: png_uri(file) for arm, file in files.items() if file.is_file()}
    order = [row.arm.name for row in ranking_table(analysis).rows if row.arm.name in shown]
    return [EmbeddedPicture(shown[arm], f"{what}: {arm}", arm) for arm in order], same

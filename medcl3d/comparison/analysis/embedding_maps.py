"""Results of a comparison's encoders without the labels of the task: scores, and embedding maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medcl3d.comparison.plan.runs import Run
from medcl3d.evaluation.metrics.label_free import BETTER
from medcl3d.io.json_file import read_record
from medcl3d.pretraining.embedding_export import FEATURES, SCORES
from medcl3d.pretraining.pair_audit import PAIR_AUDIT

DIRECTIONS = BETTER | {"pair_purity": "higher", "pair_false_negatives": "lower"}
"""The better direction of label-free scores of an encoder, and of the audit of its pairs."""
FEWEST_CROPS = 8
MOST_NAMES, FEWEST_DOTS = 7, 5
"""Limits of a map's colours: more names would share colours, and fewer dots do not show a group."""
OTHER, NONE = "other", "none"

Scores = dict[str, dict[int, dict[str, float]]]
"""Pretraining -> seed -> score -> its value, the mean over folds."""


def scores(runs: Sequence[Run]) -> Scores:
    """Scores of the pretrainings that have them in every replicate, without scores that a fold lacks."""
    seeds = {run.seed for run in runs}
    of_folds: dict[tuple[str, int], list[dict[str, float]]] = {}
    for run in runs:
        if not run.measures and (values := read_record(run.folder / SCORES).get("scores")) is not None:
            of_folds.setdefault((run.name, run.seed), []).append(values | _pair_scores(run))
    found: Scores = {}
    for (name, seed), rows in of_folds.items():
        known = [score for score in DIRECTIONS if all(score in row for row in rows)]
        found.setdefault(name, {})[seed] = {
            score: float(np.mean([row[score] for row in rows])) for score in known
        }
    return {name: by_seed for name, by_seed in found.items() if set(by_seed) == seeds}


def _pair_scores(run: Run) -> dict[str, float]:
    audit = read_record(run.folder / PAIR_AUDIT)
    shares = {f"pair_{name}": audit.get(name) for name in ("purity", "false_negatives")}
    return {name: share["mean"] for name, share in shares.items() if share is not None}


@dataclass(frozen=True)
class Spread:
    """Mean, smallest and largest value over replicates; the latter two are NaN for one replicate."""

    mean: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether there is more than one replicate."""
        return bool(np.isfinite(self.low))


def spreads(found: Scores) -> dict[str, dict[str, Spread]]:
    """Pretraining -> score -> its spread over replicates, if all have it.

    Not a t-interval: with two replicates it would exceed the range of the score.
    """
    spread_of: dict[str, dict[str, Spread]] = {}
    for name, by_seed in found.items():
        spread_of[name] = {}
        for score in DIRECTIONS:
            if all(score in row for row in by_seed.values()):
                values = [row[score] for row in by_seed.values()]
                ends = (min(values), max(values)) if len(values) > 1 else (float("nan"), float("nan"))
                spread_of[name][score] = Spread(float(np.mean(values)), *ends)
    return spread_of


@dataclass(frozen=True)
class EmbeddingMap:
    """One encoder's crops in the plane ``[N, 2]``, and their columns: name -> ``[N]`` text."""

    encoder: str
    places: np.ndarray
    known: dict[str, np.ndarray]


def embedding_maps(runs: Sequence[Run]) -> list[EmbeddingMap]:
    """A t-SNE (van der Maaten, JMLR 2008) of each pretraining of the first replicate, if it is finite."""
    found = []
    for run in runs:
        file = run.folder / FEATURES
        if run.measures or not run.represents_replicate or run.seed != runs[0].seed or not file.is_file():
            continue
        with np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
        features = arrays.pop("features").astype(float)
        arrays.pop("scan", None)
        if len(features) >= FEWEST_CROPS and np.isfinite(features).all():
            found.append(EmbeddingMap(run.name, _plane(features), arrays))
    return found


def _plane(features: np.ndarray) -> np.ndarray:
    from sklearn.manifold import TSNE

    if not np.ptp(features, axis=0).any():  # collapsed to one point, for which TSNE crashes the process
        return np.zeros((len(features), 2))
    scaled = (features - features.mean(0)) / np.maximum(features.std(0), 1e-12)
    perplexity = min(30.0, (len(features) - 1) / 3)
    places: np.ndarray = TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(scaled)
    return places


def shown_columns(some: EmbeddingMap) -> dict[str, np.ndarray]:
    """Columns that colour a map: numbers if there are many values; otherwise the most frequent names, with
    `OTHER` and `NONE`.

    Columns that do not distinguish at least two groups are left out: with one crop per patient, all dots
    would be "other".
    """
    chosen: dict[str, np.ndarray] = {}
    for name, values in some.known.items():
        names, counts = np.unique(values[values != ""], return_counts=True)
        if len(names) > MOST_NAMES and name != "patient" and (numbers := _numbers(values)) is not None:
            chosen[name] = numbers
            continue
        kept = [names[k] for k in np.argsort(-counts, kind="stable")[:MOST_NAMES] if counts[k] >= FEWEST_DOTS]
        if len(kept) > 1 or (kept and (values == "").sum() >= FEWEST_DOTS):
            chosen[name] = np.where(np.isin(values, kept), values, np.where(values == "", NONE, OTHER))
    return chosen


def _numbers(values: np.ndarray) -> np.ndarray | None:
    try:
        return np.array([float(value) if value else np.nan for value in values])
    except ValueError:
        return None

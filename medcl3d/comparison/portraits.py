"""What the encoders of a comparison say without labels: their scores, how well these told the outcome, and maps of features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from medcl3d.comparison.launch import read_json
from medcl3d.comparison.plan import CompareConfig, Run
from medcl3d.evaluation.label_free import BETTER
from medcl3d.evaluation.statistics import Interval, mean_interval
from medcl3d.training.portrait import FEATURES, SCORES

FEWEST_ENCODERS = 4
"""Of fewer, an order says nothing."""
MOST_NAMES, FEWEST_CROPS = 8, 8


@dataclass(frozen=True)
class Scores:
    """Scores without labels. encoders: pretraining -> score -> mean over replicates, without those that one of its encoders lacks.

    agreement  score -> Spearman's correlation over encoders between the score, taken as its authors say which is better, and the
               endpoint, within each replicate; its mean and 95% t-interval over replicates. None where too few encoders have both
    """

    encoders: dict[str, dict[str, Interval]]
    agreement: dict[str, Interval | None]


def scores(runs: Sequence[Run], config: CompareConfig, endpoint: Mapping[str, Sequence[float]], higher: bool) -> Scores:
    """Scores of every pretraining, and how they went with the endpoint of the first arm that starts from it.

    endpoint: arm -> one number a replicate, in the order of the seeds of `runs`.
    """
    seeds = sorted({run.seed for run in runs})
    of_folds: dict[tuple[str, int], list[dict[str, float]]] = {}
    for run in runs:
        if not run.measures and (values := read_json(run.folder / SCORES).get("scores")) is not None:
            of_folds.setdefault((run.name, run.seed), []).append(values)
    found: dict[str, dict[int, dict[str, float]]] = {}
    for (name, seed), rows in of_folds.items():
        found.setdefault(name, {})[seed] = {score: float(np.mean([row[score] for row in rows])) for score in BETTER if _known(rows, score)}
    whole = {name: by_seed for name, by_seed in found.items() if len(by_seed) == len(seeds)}
    encoders = {
        name: {score: mean_interval([values[score] for values in by_seed.values()]) for score in BETTER if _known(by_seed.values(), score)}
        for name, by_seed in whole.items()
    }
    arm_of: dict[str, str] = {}
    for name, arm in config.arms.items():
        if arm.pretraining in whole:
            arm_of.setdefault(arm.pretraining, name)
    return Scores(encoders, {score: _agreement(score, whole, arm_of, endpoint, seeds, higher) for score in BETTER} if encoders else {})


def _known(rows: Iterable[Mapping[str, float]], score: str) -> bool:
    return all(score in values for values in rows)


def _agreement(
    score: str,
    found: Mapping[str, Mapping[int, Mapping[str, float]]],
    arm_of: Mapping[str, str],
    endpoint: Mapping[str, Sequence[float]],
    seeds: Sequence[int],
    higher: bool,
) -> Interval | None:
    names = [name for name in arm_of if _known(found[name].values(), score)]
    if len(names) < FEWEST_ENCODERS:
        return None
    per_replicate = []
    for number, seed in enumerate(seeds):
        said = [better(score, found[name][seed][score]) for name in names]
        was = [(1 if higher else -1) * endpoint[arm_of[name]][number] for name in names]
        if len(set(said)) > 1 and len(set(was)) > 1:
            per_replicate.append(float(stats.spearmanr(said, was).statistic))
    return mean_interval(per_replicate) if per_replicate else None


def better(score: str, value: float) -> float:
    """A score with its sign so that larger is what its authors take for better."""
    return {"lower": -value, "higher": value, "nearer to 1": -abs(value - 1)}[BETTER[score]]


@dataclass(frozen=True)
class Map:
    """One encoder's crops on a plane ``[N, 2]``, and what is known of each: name -> ``[N]`` text, in the same order."""

    encoder: str
    places: np.ndarray
    known: dict[str, np.ndarray]


def maps(runs: Sequence[Run]) -> list[Map]:
    """A map of each pretraining of the first replicate whose features are numbers, by t-SNE (van der Maaten and Hinton, JMLR 2008)."""
    found = []
    for run in runs:
        file = run.folder / FEATURES
        if run.measures or not run.shown or run.seed != runs[0].seed or not file.is_file():
            continue
        with np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
        features = arrays.pop("features").astype(float)
        if len(features) >= FEWEST_CROPS and np.isfinite(features).all():
            found.append(Map(run.name, _plane(features), {name: values for name, values in arrays.items() if name != "scan"}))
    return found


def _plane(features: np.ndarray) -> np.ndarray:
    from sklearn.manifold import TSNE

    if not np.ptp(features, axis=0).any():  # collapsed to one point, on which TSNE ends the process
        return np.zeros((len(features), 2))
    scaled = (features - features.mean(0)) / np.maximum(features.std(0), 1e-12)
    perplexity = min(30.0, (len(features) - 1) / 3)
    places: np.ndarray = TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(scaled)
    return places


def shown_columns(some: Map) -> dict[str, np.ndarray]:
    """What a map is coloured by: text of at most `MOST_NAMES` names, the rarest as "other"; or numbers, where there are more values."""
    chosen: dict[str, np.ndarray] = {}
    for name, values in some.known.items():
        names, counts = np.unique(values[values != ""], return_counts=True)
        if len(names) < 2:
            continue
        if len(names) > MOST_NAMES and (numbers := _numbers(values)) is not None and name != "patient":
            chosen[name] = numbers
            continue
        kept = names[np.argsort(-counts, kind="stable")[:MOST_NAMES]]
        chosen[name] = np.where(np.isin(values, kept), values, "other")
    return chosen


def _numbers(values: np.ndarray) -> np.ndarray | None:
    try:
        return np.array([float(value) if value else np.nan for value in values])
    except ValueError:
        return None

"""Ranking of arms over several comparisons, each on its own data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from medcl3d.comparison.analysis.analysis import Analysis
from medcl3d.comparison.analysis.results import complete_replicates
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.controls import with_controls
from medcl3d.comparison.plan.runs import endpoint_cells
from medcl3d.comparison.run.launch import read_json
from medcl3d.config.loading import load
from medcl3d.config.packaged import find_config
from medcl3d.core.errors import ConfigError
from medcl3d.evaluation.statistics.normalised import normalised
from medcl3d.evaluation.statistics.ranks import MIN_ARMS, MIN_DATA_SETS, Ranks, ranks


@dataclass(frozen=True)
class CrossDatasetRanking:
    """Ranks of the arms that all comparisons share, or the reason for which nothing is ranked.

    values  data set -> arm -> mean at its endpoint, for comparisons with a complete replicate
    scaled  data set -> arm -> the same value scaled between the anchors (0 and 1), for comparisons with
            anchors
    unscaled  sentences: data sets without a common scale, with the reason
    """

    values: dict[str, dict[str, float]]
    arms: tuple[str, ...]
    ranks: Ranks | None
    note: str
    scaled: dict[str, dict[str, float]] = field(default_factory=dict)
    unscaled: tuple[str, ...] = ()

    @property
    def mean_scaled(self) -> dict[str, float]:
        """Arm -> mean over the data sets with a common scale; empty if none has."""
        return (
            {arm: float(np.mean([found[arm] for found in self.scaled.values()])) for arm in self.arms}
            if self.scaled
            else {}
        )


def rank_across(analysis: Analysis, config: CompareConfig) -> CrossDatasetRanking | None:
    """Rank the arms over this comparison and those listed in `cross_dataset_ranking`; None if it lists none.

    ConfigError if one of them has the opposite direction of better, is a screening, or read the data of
    another.
    """
    if not config.cross_dataset_ranking:
        return None
    values = {_label(config): {name: float(np.mean(found)) for name, found in analysis.values.items()}}
    scales = {_label(config): _scaled(config, values[_label(config)], _high_of(analysis, config))}
    read_by = dict.fromkeys(data_of(config), _label(config))
    waiting: list[str] = []
    for path in config.cross_dataset_ranking:
        other = with_controls(load(find_config(str(path)), (), CompareConfig))
        if other.higher != config.higher:
            raise ConfigError(
                "cross_dataset_ranking",
                None,
                f"{other.metric} in {path} and {config.metric} here have opposite directions of better",
                "use metrics of one direction",
            )
        if other.stage == "screen":
            raise ConfigError(
                "cross_dataset_ranking",
                None,
                f"{path} is a screening, which only selects candidates",
                "name its confirmation",
            )
        found, data = endpoints(other), data_of(other)
        twice = next(
            (read_by[one] for one in data if one in read_by),
            _label(other) if _label(other) in values else None,
        )
        if twice is not None:
            raise ConfigError(
                "cross_dataset_ranking",
                None,
                f"{path} uses the same data as {twice}",
                "each data set counts once, so remove one",
            )
        if found is None:
            waiting.append(str(path))
        else:
            values[_label(other)] = found
            scales[_label(other)] = _scaled(other, found, _high_anchor(other))
            read_by |= dict.fromkeys(data, _label(other))
    shared = [arm for arm in config.arms if all(arm in found for found in values.values())]
    note = f"{', '.join(waiting)}: no complete replicate yet. " if waiting else ""
    scaled = {name: found for name, found in scales.items() if not isinstance(found, str)}
    unscaled = tuple(
        f"{name} has no common scale: {why}." for name, why in scales.items() if isinstance(why, str)
    )
    if len(values) < MIN_DATA_SETS or len(shared) < MIN_ARMS:
        few = (
            f"{len(values)} data sets and {len(shared)} shared arms; "
            f"ranks need at least {MIN_DATA_SETS} and {MIN_ARMS}."
        )
        return CrossDatasetRanking(values, tuple(shared), None, note + few, scaled, unscaled)
    table = np.array([[found[arm] for arm in shared] for found in values.values()])
    return CrossDatasetRanking(values, tuple(shared), ranks(table, config.higher), note, scaled, unscaled)


def _scaled(config: CompareConfig, values: Mapping[str, float], high: float | None) -> dict[str, float] | str:
    """Arm -> mean scaled between the anchors, or the reason for which no common scale exists."""
    anchors = config.anchors
    if anchors is None:
        return "its file declares no `anchors`"
    missing = [name for name in (anchors.low, anchors.high) if name not in values]
    if missing or high is None:
        return (
            f"the arm {missing[0]!r} of `anchors` does not exist"
            if missing
            else "its high anchor has no value"
        )
    found = normalised(values, values[anchors.low], high, config.higher)
    return (
        found
        if found is not None
        else f"the high anchor {anchors.high!r} is not better than the low one {anchors.low!r}"
    )


def _high_of(analysis: Analysis, config: CompareConfig) -> float | None:
    """The mean of this comparison's high anchor, over the anchor's cells."""
    if config.anchors is None or config.anchors.high not in config.arms:
        return None
    chosen = _at_high(config)
    found = analysis.arm(config.anchors.high).cells
    return float(np.mean([found[cell].mean.mean for cell in endpoint_cells(chosen)]))


def _high_anchor(config: CompareConfig) -> float | None:
    """The mean of another comparison's high anchor, from its results.csv."""
    found = endpoints(_at_high(config)) if config.anchors is not None else None
    return None if found is None or config.anchors is None else found.get(config.anchors.high)


def _at_high(config: CompareConfig) -> CompareConfig:
    """The comparison with the cells of its high anchor as its endpoint."""
    chosen = config.anchors.high_endpoint if config.anchors is not None else {}
    return replace(config, endpoint=chosen) if chosen else config


def _label(config: CompareConfig) -> str:
    return str(config.out_dir)


def data_of(config: CompareConfig) -> set[str]:
    """Hashes of the data that a comparison's measurements read, for the runs that exist."""
    folder = config.out_dir / config.measured_by[0]
    return {
        str(data)
        for file in folder.rglob("provenance.json")
        if (data := read_json(file).get("data")) is not None
    }


def endpoints(config: CompareConfig) -> dict[str, float] | None:
    """Arm -> mean at the endpoint over the complete replicates of a comparison's results.csv; None if there
    is none.
    """
    file = config.report_dir / "results.csv"
    if not file.is_file():
        return None
    table = pd.read_csv(file)
    seeds = complete_replicates(table, config)
    if not seeds:
        return None
    chosen = table[table["seed"].isin(seeds)]
    primary = [dict(cell) for cell in endpoint_cells(config)]
    return {arm: _mean(chosen[chosen["arm"] == arm], primary, config.metric) for arm in config.arms}


def _mean(rows: pd.DataFrame, primary: Sequence[Mapping[str, object]], metric: str) -> float:
    """The mean over the rows whose cell belongs to the endpoint."""
    records = rows.to_dict("records")
    taken = [
        row
        for row in records
        if any(all(row[key] == value for key, value in cell.items()) for cell in primary)
    ]
    return float(np.mean([row[metric] for row in taken]))

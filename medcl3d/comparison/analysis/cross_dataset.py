"""Ranking of arms over several comparisons, each on its own data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from medcl3d.comparison.analysis.analysis import Analysis
from medcl3d.comparison.analysis.results import complete_replicates
from medcl3d.comparison.plan.cells import endpoint_cells
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.controls import with_controls
from medcl3d.config.loading import load
from medcl3d.config.packaged import find_config
from medcl3d.core.errors import ConfigError
from medcl3d.evaluation.statistics.ranks import MIN_ARMS, MIN_DATA_SETS, Ranks, normalised, ranks
from medcl3d.io.json_file import read_record


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
        arms = self.arms if self.scaled else ()
        return {arm: float(np.mean([found[arm] for found in self.scaled.values()])) for arm in arms}


def rank_across(analysis: Analysis, config: CompareConfig) -> CrossDatasetRanking | None:
    """Rank the arms over this comparison and those listed in `cross_dataset_ranking`; None if it lists none.

    ConfigError if one of them has the opposite direction of better, is a screening, or read the data of
    another.
    """
    if not config.cross_dataset_ranking:
        return None
    own = {name: float(np.mean(found)) for name, found in analysis.values.items()}
    values = {str(config.out_dir): own}
    scales = {str(config.out_dir): _scaled(config, own, _high_of(analysis, config))}
    read_by = dict.fromkeys(data_of(config), str(config.out_dir))
    waiting: list[str] = []
    for path in config.cross_dataset_ranking:
        other = with_controls(load(find_config(str(path)), (), CompareConfig))
        if other.higher != config.higher:
            metrics = f"{other.metric} in {path} and {config.metric} here"
            problem = f"{metrics} have opposite directions of better"
            raise ConfigError("cross_dataset_ranking", None, problem, "use metrics of one direction")
        if other.stage == "screen":
            problem = f"{path} is a screening, which only selects candidates"
            raise ConfigError("cross_dataset_ranking", None, problem, "name its confirmation")
        label, found, data = str(other.out_dir), endpoints(other), data_of(other)
        same = [read_by[one] for one in data if one in read_by] + ([label] if label in values else [])
        if same:
            problem = f"{path} uses the same data as {same[0]}"
            remedy = "each data set counts once, so remove one"
            raise ConfigError("cross_dataset_ranking", None, problem, remedy)
        if found is None:
            waiting.append(str(path))
        else:
            values[label] = found
            scales[label] = _scaled(other, found, _high_anchor(other))
            read_by |= dict.fromkeys(data, label)
    shared = [arm for arm in config.arms if all(arm in found for found in values.values())]
    note = f"{', '.join(waiting)}: no complete replicate yet. " if waiting else ""
    scaled = {name: found for name, found in scales.items() if not isinstance(found, str)}
    unscaled = tuple(
        f"{name} has no common scale: {why}." for name, why in scales.items() if isinstance(why, str)
    )
    found_ranks = None
    if len(values) < MIN_DATA_SETS or len(shared) < MIN_ARMS:
        note += f"{len(values)} data sets and {len(shared)} shared arms; "
        note += f"ranks need at least {MIN_DATA_SETS} and {MIN_ARMS}."
    else:
        table = np.array([[found[arm] for arm in shared] for found in values.values()])
        found_ranks = ranks(table, config.higher)
    return CrossDatasetRanking(values, tuple(shared), found_ranks, note, scaled, unscaled)


def _scaled(config: CompareConfig, values: Mapping[str, float], high: float | None) -> dict[str, float] | str:
    """Arm -> mean scaled between the anchors, or the reason for which no common scale exists."""
    anchors = config.anchors
    if anchors is None:
        return "its file declares no `anchors`"
    missing = [name for name in (anchors.low, anchors.high) if name not in values]
    if missing:
        return f"the arm {missing[0]!r} of `anchors` does not exist"
    if high is None:
        return "its high anchor has no value"
    found = normalised(values, values[anchors.low], high, config.higher)
    worse = f"the high anchor {anchors.high!r} is not better than the low one {anchors.low!r}"
    return worse if found is None else found


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


def data_of(config: CompareConfig) -> set[str]:
    """Hashes of the data that a comparison's measurements read, for the runs that exist."""
    folder = config.out_dir / config.measured_by[0]
    found = [read_record(file).get("data") for file in folder.rglob("provenance.json")]
    return {str(data) for data in found if data is not None}


def endpoints(config: CompareConfig) -> dict[str, float] | None:
    """Arm -> mean at the endpoint over the complete replicates of results.csv; None without any."""
    file = config.report_dir / "results.csv"
    if not file.is_file() or not file.read_bytes().strip():
        return None
    # As text, since names of arms and values of cells may look like numbers, or like missing ones.
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    table = table.assign(seed=table["seed"].astype(int), **{config.metric: _numbers(table[config.metric])})
    seeds = complete_replicates(table, config)
    if not seeds:
        return None
    primary = [
        {key: "" if value is None else str(value) for key, value in cell} for cell in endpoint_cells(config)
    ]
    rows = [
        row
        for row in table[table["seed"].isin(seeds)].to_dict("records")
        if any(all(row[key] == text for key, text in cell.items()) for cell in primary)
    ]
    return {
        arm: float(np.mean([row[config.metric] for row in rows if row["arm"] == arm])) for arm in config.arms
    }


def _numbers(column: pd.Series) -> pd.Series:
    return pd.to_numeric(column.where(column != "")).astype(float)

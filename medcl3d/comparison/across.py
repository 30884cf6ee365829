"""The arms of several comparisons on as many data sets, ranked over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medcl3d.comparison.analysis import Analysis
from medcl3d.comparison.config import CompareConfig
from medcl3d.comparison.controls import with_controls
from medcl3d.comparison.launch import read_json
from medcl3d.comparison.plan import cells, in_endpoint
from medcl3d.comparison.results import complete_replicates
from medcl3d.config import load
from medcl3d.errors import ConfigError
from medcl3d.evaluation.ranks import MIN_ARMS, MIN_DATA_SETS, Ranks, ranks
from medcl3d.packaged_configs import find_config


@dataclass(frozen=True)
class Across:
    """Ranks of the arms that all comparisons have, or why there are none.

    values  data set -> arm -> mean at its endpoint, of the comparisons that have a complete replicate
    """

    values: dict[str, dict[str, float]]
    arms: tuple[str, ...]
    ranks: Ranks | None
    note: str


def rank_across(analysis: Analysis, config: CompareConfig) -> Across | None:
    """This comparison and those that it names in `across`; None where it names none.

    ConfigError where one of them is of another direction of better, is a screening, or read the data of another.
    """
    if not config.across:
        return None
    values = {_label(config): {name: float(np.mean(found)) for name, found in analysis.values.items()}}
    read_by = dict.fromkeys(data_of(config), _label(config))
    waiting: list[str] = []
    for path in config.across:
        other = with_controls(load(find_config(str(path)), (), CompareConfig))
        if other.higher != config.higher:
            raise ConfigError(f"across: {other.metric} in {path} and {config.metric} here are better in two directions; compare one")
        if other.stage == "screen":
            raise ConfigError(f"across: {path} is a screening, which picks candidates; name what confirms it")
        found, data = endpoints(other), data_of(other)
        twice = next((read_by[one] for one in data if one in read_by), _label(other) if _label(other) in values else None)
        if twice is not None:
            raise ConfigError(f"across: {path} is of the same data as {twice}; a data set counts once")
        if found is None:
            waiting.append(str(path))
        else:
            values[_label(other)] = found
            read_by |= dict.fromkeys(data, _label(other))
    shared = [arm for arm in config.arms if all(arm in found for found in values.values())]
    note = f"{', '.join(waiting)}: no complete replicate yet. " if waiting else ""
    if len(values) < MIN_DATA_SETS or len(shared) < MIN_ARMS:
        few = f"{len(values)} data sets and {len(shared)} arms that all have; ranks take {MIN_DATA_SETS} and {MIN_ARMS}."
        return Across(values, tuple(shared), None, note + few)
    table = np.array([[found[arm] for arm in shared] for found in values.values()])
    return Across(values, tuple(shared), ranks(table, config.higher), note)


def _label(config: CompareConfig) -> str:
    return str(config.out_dir)


def data_of(config: CompareConfig) -> set[str]:
    """Hashes of the data that the measurements of a comparison read, as far as its runs are there."""
    folder = config.out_dir / config.measured_by[0]
    return {str(data) for file in folder.rglob("provenance.json") if (data := read_json(file).get("data")) is not None}


def endpoints(config: CompareConfig) -> dict[str, float] | None:
    """Arm -> mean at the endpoint over the complete replicates of a comparison's results.csv; None where there is none."""
    file = config.report_dir / "results.csv"
    if not file.is_file():
        return None
    table = pd.read_csv(file)
    seeds = complete_replicates(table, config)
    if not seeds:
        return None
    chosen = table[table["seed"].isin(seeds)]
    primary = [dict(cell) for cell in cells(config) if in_endpoint(cell, config)]
    return {arm: _mean(chosen[chosen["arm"] == arm], primary, config.metric) for arm in config.arms}


def _mean(rows: pd.DataFrame, primary: Sequence[Mapping[str, object]], metric: str) -> float:
    """Over the rows whose cell is one of the endpoint's."""
    records = rows.to_dict("records")
    taken = [row for row in records if any(all(row[key] == value for key, value in cell.items()) for cell in primary)]
    return float(np.mean([row[metric] for row in taken]))

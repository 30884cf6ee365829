"""The arms of several comparisons on as many data sets, ranked over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medcl3d.comparison.analysis import Analysis
from medcl3d.comparison.controls import with_controls
from medcl3d.comparison.plan import CompareConfig, cells, in_endpoint
from medcl3d.comparison.results import complete_replicates
from medcl3d.config import load
from medcl3d.errors import ConfigError
from medcl3d.evaluation.ranks import MIN_ARMS, MIN_DATA_SETS, Ranks, ranks


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

    ConfigError where one of them is of another direction of better, or shares data with another.
    """
    if not config.across:
        return None
    values = {config.out_dir.name: {name: float(np.mean(found)) for name, found in analysis.values.items()}}
    waiting: list[str] = []
    for path in config.across:
        other = with_controls(load(path, (), CompareConfig))
        if other.higher != config.higher:
            raise ConfigError(f"across: {other.metric} in {path} and {config.metric} here are better in two directions; compare one")
        found = endpoints(other)
        if found is None:
            waiting.append(str(path))
        elif other.out_dir.name in values:
            raise ConfigError(f"across: two comparisons have the out_dir {other.out_dir}; a data set counts once")
        else:
            values[other.out_dir.name] = found
    shared = [arm for arm in config.arms if all(arm in found for found in values.values())]
    note = f"{', '.join(waiting)}: no complete replicate yet. " if waiting else ""
    if len(values) < MIN_DATA_SETS or len(shared) < MIN_ARMS:
        few = f"{len(values)} data sets and {len(shared)} arms that all have; ranks take {MIN_DATA_SETS} and {MIN_ARMS}."
        return Across(values, tuple(shared), None, note + few)
    table = np.array([[found[arm] for arm in shared] for found in values.values()])
    return Across(values, tuple(shared), ranks(table, config.higher), note)


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

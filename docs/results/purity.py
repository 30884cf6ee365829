"""Measure whether the purity of pairs orders encoders as their results do: `python docs/results/purity.py`.

For each arm with pairs of five comparisons whose rows are committed, the pairs are audited without training,
as by `medcl3d audit`; docs/results/purity.csv gets a row per arm. With names of comparisons, only these are
audited, and the other rows are kept. The sets of `COMPARISONS` must be prepared with the commands of their
configurations.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from scipy import stats

from medcl3d.comparison.analysis.agreement import rank_interval
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.controls import with_controls
from medcl3d.comparison.plan.runs import plan
from medcl3d.config.loading import load
from medcl3d.evaluation.statistics.intervals import Interval
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.pair_audit import BATCHES, audit_of
from medcl3d.pretraining.pair_labels import STRUCTURES, labels_of
from medcl3d.pretraining.parts import assemble

RESULTS = Path(__file__).parent
CONFIGS = RESULTS.parents[1] / "configs" / "compare"
FILE = RESULTS / "purity.csv"
MEASURES = {"purity": 1, "false_negatives": -1}
"""Measures of an audit, and 1 if a higher value is expected to be better, else -1."""


@dataclass(frozen=True)
class Comparison:
    """One comparison: its name, its configuration, its committed rows, and its endpoint.

    by    what the audit compares: structures, or a column of the manifest with classes
    sign  1 if a higher value of the endpoint is better, else -1
    """

    name: str
    config: str
    rows: str
    metric: str
    by: str = STRUCTURES
    sign: int = 1


COMPARISONS = (
    Comparison("brain", "ixi_structures.yaml", "ixi_structures.csv", "linear/balanced_accuracy"),
    Comparison("adrenal glands", "study/adrenal.yaml", "adrenal_frozen.csv", "linear/auroc", "class"),
    Comparison(
        "sarcoma, matching",
        "study/sarcoma.yaml",
        "sarcoma_matching.csv",
        "voxel_matching/frame/error_mm",
        sign=-1,
    ),
    Comparison("hearts", "study/sunnybrook.yaml", "sunnybrook_voxels.csv", "voxel_probe/dice"),
    Comparison("hippocampus", "study/hippocampus.yaml", "hippocampus_voxels.csv", "voxel_probe/dice"),
)


def audits(comparison: Comparison) -> Iterator[dict[str, object]]:
    """Purity and false negatives of each arm with pairs."""
    config = with_controls(load(CONFIGS / comparison.config, (), CompareConfig))
    pretrainings = {
        run.name: run for run in plan(config) if run.command == "pretrain" and run.seed == config.first_seed
    }
    values = endpoint(comparison)
    for name, arm in config.arms.items():
        run = pretrainings.get(arm.pretraining or "")
        if run is None or name not in values.index:
            continue
        parts = assemble(load(run.config, run.overrides, PretrainConfig))
        if parts.config.objective.name == "mae":
            continue
        found = audit_of(parts, labels_of(parts, comparison.by))
        purity, negatives = found.purity, found.false_negatives
        yield {
            "comparison": comparison.name,
            "arm": name,
            "purity": purity.mean,
            "low": purity.low,
            "high": purity.high,
            "false_negatives": negatives.mean,
            "endpoint": values[name],
        }
        print(f"{comparison.name}, {name}: {purity.mean:.3f}")


def endpoint(comparison: Comparison) -> pd.Series:
    """Arm -> mean of the endpoint over replicates."""
    return pd.read_csv(RESULTS / comparison.rows).groupby("arm")[comparison.metric].mean()


def correlations(table: pd.DataFrame, measure: str) -> dict[str, Interval]:
    """Spearman's correlation of a measure of `MEASURES` and the endpoint, of each comparison and of all.

    table  the rows of `FILE`; for all comparisons, ranks are divided by the number of arms of their own
    """
    found, ranks = {}, []
    for comparison in COMPARISONS:
        rows = table[table["comparison"] == comparison.name]
        both = pd.DataFrame(
            {"measure": MEASURES[measure] * rows[measure], "endpoint": comparison.sign * rows["endpoint"]}
        ).rank()
        found[comparison.name] = rank_interval(spearman(both), len(both))
        ranks.append(both / len(both))
    together = pd.concat(ranks)
    return found | {"all": rank_interval(spearman(together), len(together))}


def spearman(both: pd.DataFrame) -> float:
    """Spearman's correlation of two columns."""
    return float(stats.spearmanr(both["measure"], both["endpoint"]).statistic)


if __name__ == "__main__":
    order = [one.name for one in COMPARISONS]
    names = sys.argv[1:] or order
    if unknown := set(names) - set(order):
        sys.exit(
            f"no comparison is named {', '.join(sorted(unknown))}; choose from {', '.join(map(repr, order))}"
        )
    found = pd.DataFrame([row for one in COMPARISONS if one.name in names for row in audits(one)])
    kept = pd.read_csv(FILE).query("comparison not in @names")
    rows = pd.concat([kept, found]).sort_values(
        "comparison", key=lambda of: of.map(order.index), kind="stable"
    )
    rows.to_csv(FILE, index=False, float_format="%.4f")
    for measure in MEASURES:
        for name, one in correlations(rows, measure).items():
            print(f"{measure}, {name}: {one.mean:+.2f} [{one.low:+.2f}, {one.high:+.2f}] over {one.n} arms")
    print(f"{BATCHES} batches, seed of the first replicate")

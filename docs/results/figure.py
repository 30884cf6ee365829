"""Draw docs/pictures/results.svg, and print its numbers: `python docs/results/figure.py`.

One panel per comparison with six replicates or more: the paired difference of each arm to the network without
pretraining, at the preregistered endpoint, with its 95% t-interval over replicates, from the committed rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import pandas as pd

from medcl3d.evaluation.statistics.crossed import over_replicates
from medcl3d.evaluation.statistics.intervals import Interval

matplotlib.use("svg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).parent
CONTROLS = ("placebo", "mae", "augmented_views", "random_contrast")  # the last chooses views


@dataclass(frozen=True)
class Panel:
    """One comparison: its committed rows, its endpoint, and the arm without pretraining.

    earlier  arms that were made with an earlier relation, marked as in docs/results/index.md
    sign     1 if a higher value is better, else -1
    digits   decimals in the text of the answers
    """

    title: str
    unit: str
    file: str
    metric: str
    reference: str
    endpoint: Mapping[str, int] = field(default_factory=dict)
    earlier: tuple[str, ...] = ()
    sign: int = 1
    digits: int = 3


PANELS = (
    Panel(
        "brain, frozen", "balanced accuracy", "ixi_structures.csv", "linear/balanced_accuracy", "untrained"
    ),
    Panel("adrenal glands, frozen", "AUROC", "adrenal_frozen.csv", "linear/auroc", "untrained"),
    Panel(
        "sarcoma, CT to PET, frozen",
        "mm, lower is better",
        "sarcoma_matching.csv",
        "voxel_matching/frame/error_mm",
        "untrained",
        sign=-1,
        digits=1,
    ),
    Panel("hearts, frozen", "Dice", "sunnybrook_voxels.csv", "voxel_probe/dice", "untrained"),
    Panel("hippocampus, frozen", "Dice", "hippocampus_voxels.csv", "voxel_probe/dice", "untrained"),
    Panel(
        "hippocampus, fine-tuned",
        "Dice",
        "hippocampus_confirm.csv",
        "dice",
        "scratch",
        {"train.steps": 500},
        ("slice_position",),
    ),
    Panel(
        "sarcoma, fine-tuned",
        "Dice",
        "sarcoma.csv",
        "dice",
        "scratch",
        earlier=("same_patient", "same_patient (placebo)"),
    ),
    Panel("adrenal glands, fine-tuned", "AUROC", "adrenal.csv", "auroc", "scratch", {"num_labelled": 64}),
)


def differences(panel: Panel) -> dict[str, Interval]:
    """Arm -> its paired difference to the arm without pretraining, in the order of the file."""
    rows = pd.read_csv(RESULTS / panel.file)
    for column, value in panel.endpoint.items():
        rows = rows[rows[column] == value]
    values = rows.groupby(["arm", "seed"], sort=False)[panel.metric].mean().unstack()
    others = [arm for arm in values.index if arm != panel.reference]
    differences = {arm: (values.loc[arm] - values.loc[panel.reference]).to_numpy() for arm in others}
    return {arm: over_replicates(found).interval() for arm, found in differences.items()}


def best(panel: Panel) -> Interval:
    """The best mean difference of an arm that chooses pairs by the present relation; else of any arm."""
    found = differences(panel)
    chosen = [arm for arm in found if arm not in panel.earlier and not is_control(arm)]
    return max((found[arm] for arm in chosen or found), key=lambda one: panel.sign * one.mean)


def as_text(panel: Panel, interval: Interval) -> str:
    """A difference as in the answers of docs/results/index.md."""
    mean, low, high = (f"{value:+.{panel.digits}f}" for value in (interval.mean, interval.low, interval.high))
    return f"{mean} [{low}, {high}]".replace("-", "\N{MINUS SIGN}")


def is_control(arm: str) -> bool:
    """Whether an arm makes no choice of pairs."""
    return any(name in arm for name in CONTROLS)


def draw(path: Path) -> None:
    """Write the figure, and print the numbers."""
    plt.rcParams.update({"svg.hashsalt": "medcl3d", "svg.fonttype": "none"})  # the same file each time
    found = [differences(panel) for panel in PANELS]
    heights = [len(one) + 1.5 for one in found]
    figure, axes = plt.subplots(
        len(PANELS), 1, figsize=(7.5, 0.27 * sum(heights) + 0.6), height_ratios=heights, layout="constrained"
    )
    for axis, panel, one in zip(axes, PANELS, found, strict=True):
        for row, (arm, interval) in enumerate(one.items()):
            control = is_control(arm)
            axis.errorbar(
                interval.mean,
                row,
                xerr=[[interval.mean - interval.low], [interval.high - interval.mean]],
                fmt="o",
                color="#1f5a99",
                markerfacecolor="white" if control else "#1f5a99",
                capsize=3,
            )
            print(f"{panel.title}; {arm}: {as_text(panel, interval)}, {interval.n} replicates")
        axis.axvline(0, color="0.4", linewidth=1)
        labels = [f"{arm} \N{DAGGER}" if arm in panel.earlier else arm for arm in one]
        axis.set_yticks(range(len(one)), labels, fontsize=8)
        axis.set_ylim(len(one) - 0.5, -0.5)
        axis.set_title(f"{panel.title}: difference in {panel.unit}", fontsize=9, loc="left")
        axis.tick_params(axis="x", labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    draw(RESULTS.parent / "pictures" / "results.svg")

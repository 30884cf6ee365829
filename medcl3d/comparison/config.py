"""The file of a comparison: arms, what varies, what is tested, how it runs."""

from __future__ import annotations

from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from medcl3d.catalogue import CONFIGS, KINDS
from medcl3d.config import STRICT
from medcl3d.errors import ConfigError
from medcl3d.evaluation.directions import Direction, direction_of
from medcl3d.registry import Count, Positive, Seed
from medcl3d.typed_text import FIELDS_OF

Command = Literal["pretrain", "finetune", "evaluate"]


def holds(*places: str) -> Any:
    """Of a field below which fields of other configurations stand: where these are, as ``module:name``."""
    return Field(json_schema_extra={FIELDS_OF: list(places)})


@dataclass(frozen=True, config=STRICT)
class Prepare:
    """Data to prepare first where `out` does not hold it yet; `root` is absent for simulated data."""

    source: str
    out: Path
    root: Path | None = None
    options: Annotated[dict[str, Any], holds("medcl3d.data.options:PrepareOptions", KINDS["sources"])] = field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """A configuration file and what is set in it: dotted key -> value."""

    config: Path
    set: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class Arm:
    """What is fine-tuned: an encoder by one of the pretrainings, or from scratch where there is none."""

    pretraining: str | None = None
    set: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class NextEndpoint:
    """An endpoint that is tested after the primary one.

    metric    of this endpoint (default: that of the comparison)
    endpoint  which cells it averages (dotted key -> value; default all)
    better    whether higher or lower values are, for a metric that is not one of this package
    """

    metric: str | None = None
    endpoint: dict[str, Any] = field(default_factory=dict)
    better: Direction | None = None


@dataclass(frozen=True, config=STRICT)
class Anchors:
    """What is 0 and what is 1 on the common scale of tasks.

    low       the arm that is 0: an untrained encoder, or training from scratch
    high      the arm that is 1: training with all labels
    high_endpoint  which cells the arm `high` takes (dotted key -> value; default those of the endpoint), so that
                   scratch with the most labels may be 1 and scratch with few labels 0
    """

    low: str
    high: str
    high_endpoint: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class CompareConfig:
    """A comparison of arms.

    finetune, evaluate    what every arm goes through and is measured by: one of the two
    pretrain    set in every pretraining; may_differ: further fields in which pretrainings may differ
    vary        dotted key of finetune or evaluate -> its values; every combination is a cell
    endpoint    which cells the primary endpoint takes (dotted key -> value; default all): it is the mean
                of `metric` over them, one number a replicate and arm
    family      the arms that are tested against the reference, as one family (default: all others); the rest is exploratory
    margin      the smallest difference that matters, in units of the metric: arms of the family whose difference is shown to be smaller
                are called equivalent to the reference (default: not declared, and no arm is called so)
    next_endpoints  endpoints that are tested after the primary one, in this order; an arm is tested at each only if it was
                rejected at the one before: `[{endpoint: {num_labelled: 8}}, {metric: hd95_mm}]`
    anchors     which arms are 0 and 1 on the common scale of tasks, for `across`
    controls    arms that are added if the file has none of their type: `scratch`; `augmented_views`, which is pretrained with
                augmentations of one crop and so without a choice of pairs, one for each way in which the arms train; the
                `placebo` of every strategy that has signal columns; and `mae`, which reconstructs hidden blocks and has no pairs. They are
                outside the tested family
    stage       confirm, or screen: picks candidates, so nothing is tested
    screened    the file of the screening that this confirms: its seeds and its test patients are refused here
    across      files of comparisons of the same arms on other data, whose finished results are ranked together with this one's
    folds       how many folds of the split (prepared with as many) a replicate goes through, each pretrained and measured on its own;
                its number is the mean over them, so that every patient is tested once (default: one split)
    first_seed  replicates have the seeds first_seed, first_seed + 1, ...; what was screened is confirmed with new ones
    jobs        runs at once; on this machine they share the processors
    better      whether higher or lower values of the metric are: known of the measures of this package, to be said of others
    executor    local, or slurm: each run is a job of the cluster, which submitit sends (pip install 'medcl3d[slurm]')
    slurm       what a job asks for: submitit's parameters, as timeout_min, mem_gb, gpus_per_node, slurm_partition
    """

    out_dir: Path
    arms: Annotated[dict[str, Arm], holds(CONFIGS["finetune"], CONFIGS["evaluate"])]
    reference: str
    finetune: Annotated[Recipe | None, holds(CONFIGS["finetune"])] = None
    evaluate: Annotated[Recipe | None, holds(CONFIGS["evaluate"])] = None
    pretrainings: Annotated[dict[str, Recipe], holds(CONFIGS["pretrain"])] = field(default_factory=dict)
    pretrain: Annotated[dict[str, Any], holds(CONFIGS["pretrain"])] = field(default_factory=dict)
    may_differ: tuple[str, ...] = ()
    vary: dict[str, Any] = field(default_factory=dict)
    endpoint: dict[str, Any] = field(default_factory=dict)
    family: tuple[str, ...] = ()
    margin: Positive | None = None
    next_endpoints: tuple[NextEndpoint, ...] = ()
    anchors: Anchors | None = None
    controls: tuple[Literal["scratch", "augmented_views", "placebo", "mae"], ...] = ("scratch", "augmented_views", "placebo", "mae")
    stage: Literal["screen", "confirm"] = "confirm"
    screened: Path | None = None
    across: tuple[Path, ...] = ()
    folds: Annotated[int, Field(ge=2)] | None = None
    first_seed: Seed = 0
    replicates: Count = 1
    metric: str = "dice"
    better: Direction | None = None
    jobs: Count = 1
    executor: Literal["local", "slurm"] = "local"
    slurm: dict[str, Any] = field(default_factory=dict)
    prepare: Prepare | None = None

    @property
    def measured_by(self) -> tuple[Command, Recipe]:
        """The command that measures the arms, and its recipe. ConfigError unless one is given."""
        if self.finetune is not None and self.evaluate is None:
            return "finetune", self.finetune
        if self.evaluate is not None and self.finetune is None:
            return "evaluate", self.evaluate
        raise ConfigError("a comparison needs `finetune` or `evaluate`, one of the two, as in `finetune: {config: mine.yaml}`")

    @property
    def higher(self) -> bool:
        """Larger values of the metric are better."""
        return (self.better or direction_of(self.metric)) == "higher"

    @property
    def later(self) -> tuple[CompareConfig, ...]:
        """This comparison with each of its next endpoints in the place of the primary one, in their order."""

        def at(one: NextEndpoint) -> CompareConfig:
            same = one.metric in (None, self.metric)
            better = one.better or (self.better if same else None)
            return replace(self, metric=one.metric or self.metric, endpoint=one.endpoint, better=better, next_endpoints=())

        return tuple(map(at, self.next_endpoints))

    @property
    def report_dir(self) -> Path:
        """Where tables and report go: beside those of a fine-tuning that has the same out_dir, and so the same pretrainings."""
        return self.out_dir / "evaluate" if self.measured_by[0] == "evaluate" else self.out_dir

"""Configuration of a comparison: arms, varied fields, tests, execution."""

from __future__ import annotations

from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field
from pydantic.dataclasses import dataclass

from medcl3d.config.field_types import STRICT, Positive, PositiveInt, Seed
from medcl3d.config.kinds import CONFIGS, KINDS
from medcl3d.config.overrides import FIELDS_OF, PATHS_OF
from medcl3d.config.renamed_fields import strict
from medcl3d.core.errors import ConfigError
from medcl3d.evaluation.metrics.directions import Direction, direction_of
from medcl3d.layouts.foreign import ForeignWeights

Command = Literal["pretrain", "finetune", "evaluate"]
Control = Literal["scratch", "augmented_views", "placebo", "mae"]


def holds(*places: str) -> Any:
    """Annotation of a field that holds fields of other configurations, each given as ``module:name``."""
    return Field(json_schema_extra={FIELDS_OF: list(places)})


def keys_of(*commands: Command) -> Any:
    """Annotation of a field that names fields of the configurations of some commands, by dotted keys."""
    return Field(json_schema_extra={PATHS_OF: [CONFIGS[command] for command in commands]})


Cells = Annotated[dict[str, Any], keys_of("finetune", "evaluate")]
"""Dotted key of a varied field -> value."""


@dataclass(frozen=True, config=STRICT)
class Prepare:
    """Data to prepare first if `out` does not hold it yet.

    source   type of the source, as in `medcl3d prepare`
    out      folder of the store
    root     folder or file that the source reads; absent for simulated data
    options  fields of the source and of the preparation
    """

    source: str
    out: Path
    root: Path | None = None
    options: Annotated[
        dict[str, Any], holds("medcl3d.preprocessing.options:PrepareOptions", KINDS["sources"])
    ] = field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """A configuration file and the fields set in it.

    config  a YAML file, or the name of a packaged configuration
    set     fields that differ from the file: dotted key -> value
    """

    config: Path
    set: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class Arm:
    """One arm: starts from the encoder of a pretraining, from weights of another project, or from scratch.

    pretraining  name of the pretraining (default: from scratch)
    set          fields of the measuring recipe that differ in this arm: dotted key -> value
    init         weights of another project, as `{weights: FILE, layout: NAME, saw: unknown}`; usually with
                 their encoder in `set`
    """

    pretraining: str | None = None
    set: dict[str, Any] = field(default_factory=dict)
    init: ForeignWeights | None = None


@dataclass(frozen=True, config=STRICT)
class NextEndpoint:
    """An endpoint that is tested after the primary one.

    metric    metric of this endpoint (default: the comparison's)
    endpoint  cells that it averages (dotted key -> value; default all)
    better    higher or lower; required for a metric that this package does not define
    """

    metric: str | None = None
    endpoint: Cells = field(default_factory=dict)
    better: Direction | None = None


@dataclass(frozen=True, config=STRICT)
class Anchors:
    """The arms that define 0 and 1 on the common scale of tasks.

    low       the arm at 0: an untrained encoder, or training from scratch
    high      the arm at 1: training with all labels
    high_endpoint  cells of the arm `high` (dotted key -> value; default those of the endpoint), so that
                   scratch with the most labels can be 1 and scratch with few labels 0
    """

    low: str
    high: str
    high_endpoint: Cells = field(default_factory=dict)


@dataclass(frozen=True, config=strict({"screened": "screening", "across": "cross_dataset_ranking"}))
class CompareConfig:
    """A comparison of arms.

    out_dir  folder of all runs and of the report
    arms  name -> arm; each is measured in every cell and replicate
    reference  the arm that the others are compared with
    finetune, evaluate  the recipe that measures every arm: one of the two
    pretrainings  name -> recipe of a pretraining
    pretrain  fields set in every pretraining: dotted key -> value
    may_differ  further fields in which pretrainings may differ
    metric  the metric of the primary endpoint, as a run reports it: `dice`, `linear/auroc`
    replicates  number of seeds; fewer than six are not tested
    prepare  data to prepare first
    vary  dotted key of finetune or evaluate -> its values; every combination is a cell
    endpoint  cells of the primary endpoint (dotted key -> value; default all): the endpoint is the mean of
        `metric` over them, one number per replicate and arm
    family  arms that are tested against the reference, as one family (default: all others); the rest is
        exploratory
    margin  the smallest difference that matters, in units of the metric: arms of the family whose difference
        is shown to be smaller are called equivalent to the reference (default: no equivalence test)
    next_endpoints  endpoints that are tested after the primary one, in this order; an arm is tested at each
        only if it was rejected at the one before: `[{endpoint: {num_labelled: 8}}, {metric: hd95_mm}]`
    anchors  arms at 0 and 1 on the common scale of tasks, for `cross_dataset_ranking`
    controls  arms that are added if the file has none of their type: `scratch`, also with the encoder of
        weights of another project; `augmented_views`, pretrained with augmentations of one crop and so
        without a choice of pairs, one for each way in which the arms train; the `placebo` of every strategy
        that has signal columns; and `mae`, which reconstructs masked blocks and has no pairs. They are
        outside the tested family
    stage  confirm, or screen: selects candidates, so nothing is tested
    screening  file of the screening that this comparison confirms: its seeds and test patients are refused
    cross_dataset_ranking  files of comparisons of the same arms on other data, whose finished results are
        ranked with this one's
    folds  number of folds of the split (prepared with as many) in each replicate, each pretrained and
        measured separately; the replicate's number is the mean over them, so every patient is tested once
        (default: one split)
    first_seed  replicates have the seeds first_seed, first_seed + 1, ...; a confirmation uses new seeds
    jobs  runs at once; local runs share the processors
    better  higher or lower; known for the metrics of this package, required for others
    executor  local, or slurm: each run is a cluster job, submitted through submitit (pip install
        'medcl3d[slurm]')
    slurm  resources of a job: submitit's parameters, as timeout_min, mem_gb, gpus_per_node, slurm_partition
    """

    out_dir: Path
    arms: Annotated[dict[str, Arm], holds(CONFIGS["finetune"], CONFIGS["evaluate"])]
    reference: str
    finetune: Annotated[Recipe | None, holds(CONFIGS["finetune"])] = None
    evaluate: Annotated[Recipe | None, holds(CONFIGS["evaluate"])] = None
    pretrainings: Annotated[dict[str, Recipe], holds(CONFIGS["pretrain"])] = field(default_factory=dict)
    pretrain: Annotated[dict[str, Any], holds(CONFIGS["pretrain"])] = field(default_factory=dict)
    may_differ: Annotated[tuple[str, ...], keys_of("pretrain")] = ()
    vary: Cells = field(default_factory=dict)
    endpoint: Cells = field(default_factory=dict)
    family: tuple[str, ...] = ()
    margin: Positive | None = None
    next_endpoints: tuple[NextEndpoint, ...] = ()
    anchors: Anchors | None = None
    controls: tuple[Control, ...] = get_args(Control)
    stage: Literal["screen", "confirm"] = "confirm"
    screening: Path | None = None
    cross_dataset_ranking: tuple[Path, ...] = ()
    folds: Annotated[int, Field(ge=2)] | None = None
    first_seed: Seed = 0
    replicates: PositiveInt = 1
    metric: str = "dice"
    better: Direction | None = None
    jobs: PositiveInt = 1
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
        example = "`finetune: {config: mine.yaml}`"
        raise ConfigError(f"a comparison needs `finetune` or `evaluate`, one of the two, as in {example}")

    @property
    def seeds(self) -> range:
        """The seeds of the replicates."""
        return range(self.first_seed, self.first_seed + self.replicates)

    @property
    def tested_arms(self) -> tuple[str, ...]:
        """The arms that are tested, as one family; the others are exploratory."""
        return self.family or tuple(name for name in self.arms if name != self.reference)

    @property
    def higher(self) -> bool:
        """Whether larger values of the metric are better."""
        return (self.better or direction_of(self.metric)) == "higher"

    @property
    def later(self) -> tuple[CompareConfig, ...]:
        """This comparison with each of its next endpoints as the primary one, in their order."""

        def at(one: NextEndpoint) -> CompareConfig:
            metric = one.metric or self.metric
            better = one.better or (self.better if metric == self.metric else None)
            return replace(self, metric=metric, endpoint=one.endpoint, better=better, next_endpoints=())

        return tuple(map(at, self.next_endpoints))

    @property
    def report_dir(self) -> Path:
        """Folder of the report: `evaluate` inside out_dir, so that a fine-tuning may share pretrainings."""
        return self.out_dir / "evaluate" if self.measured_by[0] == "evaluate" else self.out_dir

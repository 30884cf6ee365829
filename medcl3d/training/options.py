"""Options of the training loop, and checks of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from medcl3d.config.field_types import STRICT, Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt
from medcl3d.core.errors import ConfigError
from medcl3d.distributed.collectives import TIMEOUT_S, world_size
from medcl3d.distributed.precision import Precision
from medcl3d.training.optim import OptimizerName
from medcl3d.training.trackers import TrackerName, check_trackers


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FitOptions:
    """Options of the training loop and the optimiser.

    steps              number of steps of the optimiser
    samples_per_step   samples in a step, the total over all ranks
    lr                 largest learning rate, at the end of the warm-up; it falls to 0 along half a cosine
    weight_decay       adamw: decoupled, times the learning rate; sgd and lars: added to the gradient
    warmup_steps       steps in which the learning rate rises linearly
    precision          auto: bfloat16 autocast if the device supports it, else float16 on GPUs with tensor
                       cores for it, else float32. The loss is scaled in float16
    clip_norm          maximum norm of the gradient
    checkpoint_every   steps between checkpoints, from which a stopped run resumes
    log_every          steps between rows of metrics.jsonl
    workers            data loading processes per rank (0: none)
    optimizer          adamw, sgd or lars
    momentum           for sgd and lars (default 0.9)
    nesterov           Nesterov momentum, for sgd
    layer_decay        ratio of the learning rate of an encoder layer to that of the next (0.75 is usual for a
                       ViT)
    checkpointing      recompute activations inside the encoder's blocks in the backward pass: less memory
    channels_last      store weights and crops with channels last, which is faster or slower: `doctor CONFIG`
                       measures it
    compile            torch.compile: a slow first step, then faster steps; needs a C++ compiler
    keep_steps         pretraining only: steps after which weights are kept as encoder_STEP.safetensors, for
                       `init=RUN@STEP` of an evaluation or fine-tuning
    grad_cache         pretraining only: embed this many samples per rank at a time, twice, and compute the
                       loss on the whole batch: the memory of a small batch for one more forward pass (0: all
                       at once)
    timeout_s          seconds that a rank waits for another one before the run fails
    tf32               compute float32 convolutions in TF32 (3 digits) on GPUs that have it
    deterministic      use algorithms with the same result in each run on a GPU, which are slower
    profile            measure where the time of steps 5 to 9 goes: OUT/profile/times.txt and trace.json
    trackers           tensorboard, mlflow, wandb (the last two: pip install 'medcl3d[mlflow,wandb]')
    """

    steps: PositiveInt
    samples_per_step: PositiveInt
    lr: Positive = 1e-3
    weight_decay: NonNegative = 1e-2
    warmup_steps: NonNegativeInt = 0
    clip_norm: Positive = 1.0
    precision: Precision = "auto"
    checkpoint_every: PositiveInt = 200
    log_every: PositiveInt = 10
    workers: NonNegativeInt = 0
    optimizer: OptimizerName = "adamw"
    momentum: Fraction | None = None
    nesterov: bool = False
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    checkpointing: bool = False
    channels_last: bool = False
    compile: bool = False
    keep_steps: tuple[PositiveInt, ...] = ()
    grad_cache: NonNegativeInt = 0
    timeout_s: Positive = TIMEOUT_S
    tf32: bool = True
    deterministic: bool = False
    profile: bool = False
    trackers: tuple[TrackerName, ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        if self.optimizer == "adamw" and self.momentum is not None:
            remedy = "leave it out, or set optimizer to sgd or lars"
            raise ConfigError("momentum", self.momentum, "adamw has its own two momenta", remedy)
        if any(step > self.steps for step in self.keep_steps):
            raise ValueError(
                f"keep_steps = {list(self.keep_steps)}: training ends at step {self.steps}; leave later "
                "steps out, or raise steps"
            )
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ConfigError(
                "nesterov",
                None,
                f"{self.optimizer} has no Nesterov momentum here",
                "leave it out, or set optimizer: sgd and a momentum above 0",
            )


def check_options(options: FitOptions) -> None:
    """ConfigError if the ranks cannot share the samples of a step equally, or a tracker is not installed."""
    check_trackers(options.trackers)
    if options.samples_per_step % world_size():
        problem = f"cannot be divided among {world_size()} ranks"
        remedy = "use a multiple of the number of ranks"
        raise ConfigError("train.samples_per_step", options.samples_per_step, problem, remedy, colon=False)


def warmup_warning(options: FitOptions) -> list[str]:
    """A warning if a run ends during warm-up, which is intended only in a short trial run."""
    if options.warmup_steps <= options.steps:
        return []
    return [
        f"  warning: train.warmup_steps = {options.warmup_steps} exceeds train.steps = {options.steps}: "
        "train.lr is never reached"
    ]

"""Divergence: too many consecutive steps whose gradient is not finite, which end a run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from medcl3d.core.errors import DataError

if TYPE_CHECKING:
    from medcl3d.training.options import FitOptions

BAD_STEPS, BAD_STEPS_AT_END = 10, 2
"""Consecutive steps without a finite gradient that end a run, and that fail it at its last step: one may be
due to its samples, more leave weights that are of no use."""


def diverged(bad_steps: int, step: int, steps: int) -> bool:
    """Whether a run has diverged after so many consecutive steps without a finite gradient."""
    # The first step may still be finite: of two steps, one bad one is enough.
    limit = min(BAD_STEPS_AT_END, max(1, steps - 1)) if step == steps else BAD_STEPS
    return bad_steps >= limit


def not_finite(loss: float, norm: float) -> str:
    """The quantity of a step that is not finite, with its value."""
    if math.isfinite(loss):
        return f"the norm of the gradient is {norm:g}"
    return f"the loss is {loss:g}"


def divergence(step: int, bad_steps: int, what: str, options: FitOptions) -> DataError:
    """The error of a run that diverged; `what`: of `not_finite`."""
    first, last = (k * options.samples_per_step for k in (step - bad_steps, step))
    since = f", like {bad_steps - 1} steps before it" if bad_steps > 1 else ""
    rate = f"lower train.lr (now {options.lr:g}) or train.clip_norm (now {options.clip_norm:g})"
    more = f"raise train.warmup_steps (now {options.warmup_steps}), or set train.precision to float32"
    return DataError(
        problem=f"training diverged: {what} at step {step}{since}",
        remedy=f"{rate}, {more}; if it diverges at any rate, inspect samples {first} to {last - 1}",
        field="train.lr",
    )

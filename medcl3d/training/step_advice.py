"""What could be changed about the parts of a training step that take long."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

PARTS = ("data", "forward", "backward", "optimizer")
INSIDE = ("views", "loss")
"""Parts of forward, in pretrainings on CPUs: a GPU ends a part of a step only, not these."""

# Shares of a step above which a part is named. Data and optimiser can be nearly free, so little is enough;
# views and loss are work that a run needs, so they are named only if they rival the network.
MOST = {"data": 0.05, "views": 0.3, "loss": 0.2, "optimizer": 0.15}
# Backward takes about twice the time of forward; with recomputed activations, three times.
MOST_BACKWARD = 2.5


def advice(parts: Mapping[str, float], config: Mapping[str, Any], cores: float) -> Iterator[str]:
    """A line for each part of a step that takes longer than `MOST`; if none does, one about the network.

    parts   seconds, or another unit, of `PARTS`, and of `INSIDE` if they were measured
    config  the run's configuration; cores: processor cores that the run may use
    """
    train = config.get("train", {})
    total = sum(parts[name] for name in PARTS)
    long = {name: parts[name] / total for name, most in MOST.items() if parts.get(name, 0.0) > most * total}
    workers, samples = train.get("workers", 0), train.get("samples_per_step")
    if "data" in long and workers + 1 > cores:
        reason = f"with {workers} workers on {cores:g} core{'s' if cores != 1 else ''}"
        yield f"the step waits for data {reason}: use more cores, a local disk for data.root, or store=npy"
    elif "data" in long:
        yield f"the step waits for data: raise train.workers (now {workers}), or a local disk for data.root"
    if "views" in long:
        yield (
            f"views take {long['views']:.0%}: lower the probabilities of the costly transforms of `views` "
            "(affine, blur, low resolution), or data.patch_size"
        )
    if "loss" in long:
        yield (
            f"the loss takes {long['loss']:.0%}: lower the number of points, prototypes or queued embeddings "
            "of `objective` and `pairs`"
        )
    if "optimizer" in long:
        yield (
            f"the optimiser takes {long['optimizer']:.0%}, which depends on the weights, not on the batch: "
            f"raise train.samples_per_step (now {samples}), or use a smaller encoder"
        )
    recomputing = [name for name in ("checkpointing", "grad_cache") if train.get(name)]
    if recomputing and parts["backward"] > MOST_BACKWARD * parts["forward"]:
        fields = " and ".join(f"train.{name}" for name in recomputing)
        yield f"the backward pass computes activations again: switch off {fields} if the memory suffices"
    elif not long:
        network = (parts["forward"] + parts["backward"]) / total
        yield (
            f"the network takes {network:.0%}: only a smaller encoder, crop or batch, train.precision or "
            "train.compile changes much"
        )

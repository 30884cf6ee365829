"""The training loop. `TrainState` holds all that a run needs to resume."""

from __future__ import annotations

import inspect
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medcl3d.core.embeddings import Loss
from medcl3d.core.errors import Stopped
from medcl3d.distributed.collectives import (
    all_sum,
    rank,
    wait_for_all,
    world_size,
)
from medcl3d.distributed.memory import memory_errors, peak_memory_mb
from medcl3d.distributed.precision import autocast, autocast_dtype, backends
from medcl3d.io.signals import handled
from medcl3d.training.divergence import diverged, divergence, not_finite
from medcl3d.training.optim import build_optimizer, lr_factor, set_rate
from medcl3d.training.options import FitOptions
from medcl3d.training.profile import StepProfile
from medcl3d.training.progress import StepClock, progress_of_steps
from medcl3d.training.resume import restore, save_checkpoint
from medcl3d.training.run_folder import RunFolder
from medcl3d.training.running_statistics import RunningStatistics
from medcl3d.training.speed import apply_cost_options

TOO_LARGE = (
    "lower train.samples_per_step or data.patch_size; or set train.checkpointing, or in a pretraining "
    "train.grad_cache, which need less memory and more time"
)
FIRST_SCALE = 2.0**12  # of the loss in float16: low, since too many steps that overflow end a run
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


def fit(
    model: nn.Module,
    loss_of: Callable[[nn.Module, Any], Loss],
    batches: Callable[[int], Iterator[Any]],
    options: FitOptions,
    run: RunFolder,
    device: torch.device,
    title: str = "training",
    before_step: Callable[[int, int], None] = lambda step, steps: None,
    announce: Callable[[bool], None] = lambda logged: None,
    after_step: Callable[[], None] = lambda: None,
    watch: Callable[[int], Mapping[str, float]] = lambda step: {},
    keep: Callable[[int], None] = lambda step: None,
) -> None:
    """Train `model` in place for `options.steps` steps, from the run's last checkpoint if it has one.

    loss_of(model, batch)      calls the model once
    batches(step)              yields the batches from that step on
    before_step(step, steps)   runs before each step
    announce(logged)           runs before each step, with whether its metrics will be logged
    after_step()               runs after each step of the optimiser, unless its gradient is not finite
    watch(step)                returns further metrics to log, on rank 0; all ranks call it
    keep(step)                 runs on rank 0 after the steps of `options.keep_steps`

    Stopped: a signal of `STOP_SIGNALS` was received; all ranks saved one step. DataError: training diverged.
    """
    model.to(device)
    apply_cost_options(
        model,
        checkpointing=options.checkpointing,
        channels_last=options.channels_last,
        compiled=options.compile,
    )
    optimizer = _optimizer_of(model, options)
    dtype = autocast_dtype(options.precision, device)
    scaler = torch.amp.GradScaler(device.type, FIRST_SCALE, enabled=dtype == torch.float16)
    step, bad_steps, clock = restore(model, optimizer, run, scaler, device), 0, StepClock()
    statistics = RunningStatistics(model)
    wrapped = in_parallel(model) if world_size() > 1 else model
    run.status("running", step)
    with (
        _stop_signals(device) as stop_votes,
        progress_of_steps(title, step, options.steps) as advance,
        backends(tf32=options.tf32, deterministic=options.deterministic),
        memory_errors(TOO_LARGE),
        StepProfile(options.profile, run.path, device) as profile,
    ):
        stream = batches(step)
        while step < options.steps:
            set_rate(optimizer, options.lr * lr_factor(step, options.steps, options.warmup_steps))
            with profile.part("data"):
                batch = clock.next_of(stream)
            before_step(step, options.steps)
            announce(_may_be_logged(step + 1, bad_steps + 1, options))
            with profile.part("forward"), autocast(device, dtype):
                loss = loss_of(wrapped, batch)
            optimizer.zero_grad(set_to_none=True)
            with profile.part("backward"):
                scaler.scale(loss.value).backward()  # type: ignore[no-untyped-call]  # torch has no types here
            # Each read waits for a GPU, so its ranks agree before the step, and those of CPUs after it.
            early = () if device.type == "cpu" else (stop_votes(),)
            with profile.part("optimizer"):
                loss_value, norm_value, *votes = _update(model, optimizer, scaler, loss, options, early)
            bad_steps = 0 if math.isfinite(norm_value) else bad_steps + 1
            statistics.after_step(is_valid=not bad_steps)
            if not bad_steps:
                after_step()
            profile.step()
            step += 1
            advance(step, loss_value)
            too_large = scaler.is_enabled() and math.isfinite(loss_value)  # for float16: the scale is halved
            if bad_steps == 1 and rank() == 0 and not too_large:
                run.warn(
                    step, f"{not_finite(loss_value, norm_value)}, so this step does not change the weights"
                )
            failed = diverged(bad_steps, step, options.steps)
            if step in options.keep_steps and rank() == 0 and not failed:
                keep(step)  # before a checkpoint, so that a resumed run has it too
            if step % options.log_every == 0 or step == options.steps or failed:
                rates = {"lr": optimizer.param_groups[0]["lr"], "gradient_norm": norm_value}
                rates |= _costs(clock, options, device)
                watched = watch(step) if not bad_steps else {}
                metrics = dict(zip(loss.metrics, _read(*loss.metrics.values()), strict=True))
                run.log(step, {**metrics, **rates, **watched})
                clock.restart()
            if failed:
                raise divergence(step, bad_steps, not_finite(loss_value, norm_value), options)
            stopping = sum(votes or _read(stop_votes())) > 0
            if step % options.checkpoint_every == 0 or step == options.steps or stopping:
                save_checkpoint(model, optimizer, run, step, scaler, device)
            if stopping and step < options.steps:
                run.status("stopped", step, "stopped by a signal")
                # torchrun ends all ranks when one exits, so all wait until rank 0 has written.
                wait_for_all()
                raise Stopped(
                    f"{run.path}: stopped after step {step} of {options.steps}; rerun the command to resume"
                )


def _optimizer_of(model: nn.Module, options: FitOptions) -> torch.optim.Optimizer:
    return build_optimizer(
        model,
        options.optimizer,
        lr=options.lr,
        weight_decay=options.weight_decay,
        momentum=options.momentum,
        nesterov=options.nesterov,
        layer_decay=options.layer_decay,
    )


def _costs(clock: StepClock, options: FitOptions, device: torch.device) -> dict[str, float]:
    """Speed, memory and waiting time of the last steps."""
    speed, data_wait = clock.rates()
    return {
        "samples_per_s": speed * options.samples_per_step,
        "peak_memory_mb": peak_memory_mb(device),
        "data_wait": data_wait,
    }


def _update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    loss: Loss,
    options: FitOptions,
    votes: tuple[Tensor, ...],
) -> list[float]:
    """Step the optimiser if the gradient is finite; the loss, the norm of the gradient, and `votes`.

    The gradient is the mean over ranks, so all ranks skip the same step.
    """
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
    numbers = _read(loss.metrics["loss"], norm, *votes)
    if not (math.isfinite(numbers[0]) and math.isfinite(numbers[1])):  # without an item, the gradient is 0
        loss.check()
    if math.isfinite(numbers[1]):
        optimizer.step()
    scaler.update()
    return numbers


def in_parallel(model: nn.Module) -> DistributedDataParallel:
    """The model on this rank, with gradients averaged over ranks.

    Buffers are not broadcast in each step: all ranks compute those of objectives and heads from the global
    batch, and those of rank 0 are saved.
    """
    names = inspect.signature(DistributedDataParallel).parameters
    new = "forward_sync_buffers"  # from torch 2.13 on
    unsynchronised: dict[str, Any] = {new if new in names else "broadcast_buffers": False}
    return DistributedDataParallel(model, gradient_as_bucket_view=True, **unsynchronised)


def _may_be_logged(step: int, bad_steps: int, options: FitOptions) -> bool:
    """Whether the metrics of a step will be logged if it is the last of `bad_steps` bad ones."""
    last = step == options.steps or diverged(bad_steps, step, options.steps)
    return last or step % options.log_every == 0


def _read(*values: Tensor) -> list[float]:
    """Numbers on the CPU, in one read."""
    numbers: list[float] = torch.stack([value.detach().double() for value in values]).tolist()
    return numbers


@contextmanager
def _stop_signals(device: torch.device) -> Iterator[Callable[[], Tensor]]:
    """Stop on a signal of `STOP_SIGNALS`: a function that counts the ranks that received one.

    Ranks may receive a signal at different times, so they agree on a step. A second Ctrl-C ends at once.
    """
    requested = False

    def request(number: int, _: Any) -> None:
        nonlocal requested
        if requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        requested = True

    def votes() -> Tensor:
        return all_sum(torch.full((), float(requested), device=device))

    with handled(STOP_SIGNALS, request):
        yield votes

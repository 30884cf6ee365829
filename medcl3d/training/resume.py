"""Write the state of a training run to checkpoints, and resume from the newest one."""

from __future__ import annotations

import torch
from torch import nn

from medcl3d.core.errors import ConfigError, UserError
from medcl3d.distributed.collectives import from_rank_zero, rank, say
from medcl3d.training.checkpoint import TrainState, load_latest, save
from medcl3d.training.run_folder import RunFolder


def restore(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    run: RunFolder,
    scaler: torch.amp.GradScaler,
    device: torch.device,
) -> int:
    """Load the newest checkpoint of rank 0 on every rank, and return its step; 0 if there is none.

    Only rank 0 reads, since hosts with separate disks may hold different checkpoints. ConfigError if it does
    not fit the model.
    """
    state = from_rank_zero(_read_checkpoint(run) if rank() == 0 else None)
    if isinstance(state, UserError):
        raise state
    run.remove_rows_after(state.step if state else 0)
    if state is None:
        return 0
    try:
        model.load_state_dict(state.model)
        optimizer.load_state_dict(state.optimizer)
    except (RuntimeError, ValueError, KeyError) as error:
        problem = f"the checkpoint of step {state.step} does not fit the network ({_first_line(error)})"
        remedy = "use the version of medcl3d that wrote it, or remove the run folder to start again"
        raise ConfigError(problem=problem, remedy=remedy, place=run.checkpoints) from None
    torch.set_rng_state(state.rng)
    if state.device_rng is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state.device_rng, device)
    if state.scaler and scaler.is_enabled():
        scaler.load_state_dict(state.scaler)
    step: int = state.step
    say(f"{run.path}: resumed from step {step}")
    return step


def _read_checkpoint(run: RunFolder) -> TrainState | UserError | None:
    try:
        return load_latest(run.checkpoints)
    except UserError as error:
        return error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(":")


def save_checkpoint(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    run: RunFolder,
    step: int,
    scaler: torch.amp.GradScaler,
    device: torch.device,
) -> None:
    """Write a checkpoint on rank 0."""
    if rank() != 0:
        return
    # Dropout of an encoder from another package draws on the device.
    device_rng = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    state = TrainState(
        step,
        model.state_dict(),
        optimizer.state_dict(),
        torch.get_rng_state(),
        device_rng,
        scaler.state_dict() or None,
    )
    save(run.checkpoints, state)

"""A run that was killed continues as if it had not been, also in its random numbers and its speed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn

from medcl3d.core.embeddings import Loss
from medcl3d.sampling.batches import batches_from
from medcl3d.training.loop import fit
from medcl3d.training.options import FitOptions
from medcl3d.training.run_folder import run_folder

STEPS = 6
OPTIONS = FitOptions(steps=STEPS, samples_per_step=1, lr=0.1, checkpoint_every=2, log_every=4)


class Killed(Exception):
    """The end of a run in the middle of a step."""


def weights_after(folder: Path, killed_in: int | None = None) -> torch.Tensor:
    """The weights of a network with dropout, after its run, which may be killed in a step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5))
    items = list(torch.arange(4.0 * STEPS).reshape(STEPS, 1, 4).cos())
    calls = iter(range(1, STEPS + 1))

    def loss_of(wrapped: nn.Module, batch: torch.Tensor) -> Loss:
        if next(calls) == killed_in:
            raise Killed
        value = wrapped(batch).square().mean()
        return Loss(value, {"loss": value.detach()})

    def batches(start: int) -> Iterator[torch.Tensor]:
        return batches_from(items, STEPS, 0, start)  # type: ignore[arg-type]  # a list is a dataset

    with run_folder(folder, {}, {}) as run:
        fit(model, loss_of, batches, OPTIONS, run, torch.device("cpu"))
    return model[0].weight.detach()


def test_dropout_continues_where_it_stopped(tmp_path: Path) -> None:
    whole = weights_after(tmp_path / "whole")
    with suppress(Killed):
        weights_after(tmp_path / "killed", killed_in=4)
    assert torch.equal(weights_after(tmp_path / "killed"), whole)


def test_the_first_speed_after_a_resume_is_of_the_steps_since_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    weights_after(tmp_path / "whole")
    with suppress(Killed):
        weights_after(tmp_path / "killed", killed_in=4)
    weights_after(tmp_path / "killed")
    whole, killed = (
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])
        for name in ("whole", "killed")
    )
    assert whole["step"] == killed["step"] == 4
    # The second logs after two steps since it was resumed, which take half of the time of four.
    assert killed["samples_per_s"] == pytest.approx(whole["samples_per_s"], rel=0.3)

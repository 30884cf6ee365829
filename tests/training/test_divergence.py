"""A training that diverges ends with one line: step, quantity, remedies; the step is logged first."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from medcl3d.core.embeddings import Loss, Required
from medcl3d.core.errors import DataError, MachineError
from medcl3d.objectives.diagnostics import effective_rank
from medcl3d.objectives.projector import GlobalBatchNorm
from medcl3d.pretraining.pretrain import pretrain
from medcl3d.training.checkpoint import load_latest
from medcl3d.training.divergence import diverged
from medcl3d.training.loop import fit
from medcl3d.training.options import FitOptions
from medcl3d.training.run_folder import run_folder
from tests.pretraining.test_pretrain import config_of, write


def rows_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_pretraining_that_diverges_names_step_quantity_and_remedies(
    tiny_store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    config = config_of(
        tiny_store, out, "overlapping_crops", "simclr", steps=30, lr=1e30, log_every=100, clip_norm=2.0
    )
    with pytest.raises(DataError) as found:
        pretrain(write(tmp_path / "c.yaml", config))
    step = 11  # the first step is finite
    assert str(found.value).startswith(f"training diverged: the loss is nan at step {step}, like ")
    remedies = r"lower train.lr \(now 1e\+30\) or train.clip_norm \(now 2\), raise train.warmup_steps"
    assert found.match(f"{remedies}.*inspect samples 4 to {4 * step - 1}$")
    status = json.loads((out / "status.json").read_text())
    assert (status["state"], status["step"]) == ("failed", step)
    assert rows_of(out)[-1]["step"] == step and math.isnan(rows_of(out)[-1]["loss"])
    assert (out / "warnings.txt").read_text().startswith("step 2: the loss is nan, so this step does not")
    assert not (out / "encoder.safetensors").exists()


def test_one_step_without_a_finite_gradient_is_skipped(tmp_path: Path) -> None:
    model, calls = nn.Linear(2, 1), []

    def loss_of(wrapped: nn.Module, batch: torch.Tensor) -> Loss:
        calls.append(batch)
        value = wrapped(batch).sum() * (float("inf") if len(calls) == 3 else 1.0)
        return Loss(value, {"loss": torch.zeros(())})

    def batches(start: int):
        yield from torch.ones(9, 1, 2)

    with run_folder(tmp_path / "run", {}, {}) as run:
        options = FitOptions(steps=5, samples_per_step=1)
        fit(model, loss_of, batches, options, run, torch.device("cpu"))
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert "step 3: the norm of the gradient is inf, so" in (tmp_path / "run" / "warnings.txt").read_text()


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, GlobalBatchNorm])
def test_a_skipped_step_does_not_change_the_statistics_of_batch_norms(
    tmp_path: Path, norm: type[nn.Module]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(norm(2), nn.Linear(2, 1))

    def loss_of(wrapped: nn.Module, batch: torch.Tensor) -> Loss:
        value = wrapped(batch).square().mean()
        return Loss(value, {"loss": value.detach()})

    def batches(start: int) -> Iterator[torch.Tensor]:
        ordinary = torch.arange(8.0).reshape(4, 2)
        yield from (ordinary, torch.full_like(ordinary, torch.inf), ordinary)

    with run_folder(tmp_path / "run", {}, {}) as run:
        options = FitOptions(steps=3, samples_per_step=4)
        fit(model, loss_of, batches, options, run, torch.device("cpu"))
    mean, variance = (b for b in model[0].buffers() if b.is_floating_point())
    two_steps = 1 - 0.9**2  # of the batch's statistics, with a momentum of 0.1
    torch.testing.assert_close(mean, two_steps * torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(variance, torch.full((2,), 0.9**2 + two_steps * 20 / 3))


def test_a_loss_of_no_item_ends_a_run_though_its_gradient_is_finite(tmp_path: Path) -> None:
    """As on a GPU, where the number is not read before: the gradient of no row is 0, and 0 / 0 the loss."""

    def loss_of(wrapped: nn.Module, batch: torch.Tensor) -> Loss:
        nothing = Required(torch.zeros(()), "no anchor has a positive")
        return Loss(wrapped(batch).sum() * 0, {"loss": torch.tensor(float("nan"))}, (nothing,))

    with run_folder(tmp_path / "run", {}, {}) as run:
        options = FitOptions(steps=5, samples_per_step=1)
        with pytest.raises(DataError, match="no anchor has a positive"):
            fit(
                nn.Linear(2, 1),
                loss_of,
                lambda _: iter(torch.ones(9, 1, 2)),
                options,
                run,
                torch.device("cpu"),
            )


def test_more_bad_steps_are_allowed_during_a_run_than_at_its_end() -> None:
    assert not diverged(9, 50, 100) and diverged(10, 50, 100)
    assert not diverged(1, 100, 100) and diverged(2, 100, 100)
    assert diverged(1, 2, 2) and diverged(1, 1, 1) and not diverged(0, 1, 1)


def test_embeddings_that_are_not_finite_have_no_effective_rank() -> None:
    assert math.isnan(effective_rank(torch.tensor([[1.0, 0.0], [float("nan"), 1.0]])))


def test_a_full_gpu_names_the_fields_of_training(tmp_path: Path) -> None:
    def loss_of(wrapped: nn.Module, batch: torch.Tensor) -> Loss:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    with run_folder(tmp_path / "run", {}, {}) as run:
        options = FitOptions(steps=5, samples_per_step=1)
        with pytest.raises(MachineError) as found:
            fit(nn.Linear(2, 1), loss_of, lambda step: iter([0]), options, run, torch.device("cpu"))
    text = str(found.value)
    assert text.startswith("the GPU is out of memory: 20.00 MiB more were requested; lower ")
    assert all(name in text for name in ("samples_per_step", "patch_size", "checkpointing", "grad_cache"))


def test_float16_scales_the_loss_and_lowers_the_scale_after_a_step_that_is_too_large(tmp_path: Path) -> None:
    """64 x 4096 to 64 x 1024 are above 65504, the largest number of float16."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)

    def loss_of(wrapped: nn.Module, batch: torch.Tensor) -> Loss:
        value = (wrapped(batch) * 64.0).sum()
        return Loss(value, {"loss": value.detach()})

    def batches(start: int) -> Iterator[torch.Tensor]:
        yield from torch.ones(9 - start, 1, 1)

    with run_folder(tmp_path / "run", {}, {}) as run:
        options = FitOptions(steps=6, samples_per_step=1, precision="float16", lr=0.1, weight_decay=0.0)
        fit(model, loss_of, batches, options, run, torch.device("cpu"))
        saved = load_latest(run.checkpoints)
    assert saved is not None and saved.scaler is not None and saved.scaler["scale"] == 512
    assert float(model.weight.detach()) < 1 and not (tmp_path / "run" / "warnings.txt").exists()

"""The profile of a run: a table whose parts are those of a step, a trace, and no change of the training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medcl3d.core.embeddings import Loss
from medcl3d.training.loop import fit
from medcl3d.training.options import FitOptions
from medcl3d.training.profile import parts_text
from medcl3d.training.run_folder import RunFolder


def learn(folder: Path, steps: int, profile: bool) -> Tensor:
    torch.manual_seed(0)
    model = nn.Linear(4, 2)

    def batches(step: int) -> Iterator[Tensor]:
        for number in range(step, steps):
            yield torch.full((3, 4), float(number))

    def loss_of(wrapped: nn.Module, batch: Tensor) -> Loss:
        value = wrapped(batch).square().mean()
        return Loss(value, {"loss": value.detach()})

    folder.mkdir()
    options = FitOptions(steps=steps, samples_per_step=3, precision="float32", profile=profile, trackers=())
    fit(model, loss_of, batches, options, RunFolder(folder, False, ()), torch.device("cpu"))
    return model.weight.detach()


def test_a_profile_has_the_parts_of_a_step_and_a_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profiled, plain = learn(tmp_path / "a", 10, True), learn(tmp_path / "b", 10, False)
    assert torch.equal(profiled, plain)
    lines = (tmp_path / "a" / "profile" / "times.txt").read_text().splitlines()
    assert lines[0] == "profile of 5 steps:"
    assert [line.split()[0] for line in lines[1:5]] == ["data", "forward", "backward", "optimizer"]
    assert any("aten::addmm" in line for line in lines)
    trace = json.loads((tmp_path / "a" / "profile" / "trace.json").read_text())
    assert sum(one.get("name") == "step/backward" for one in trace["traceEvents"]) == 5
    assert "ui.perfetto.dev" in capsys.readouterr().out
    assert not (tmp_path / "b" / "profile").exists()


def test_a_run_that_is_too_short_has_no_profile(tmp_path: Path) -> None:
    learn(tmp_path / "run", 3, True)
    assert not (tmp_path / "run" / "profile").exists()


def test_waiting_for_data_is_named_with_its_remedy() -> None:
    parts = {"data": 1.0, "forward": 1.0, "backward": 1.5, "optimizer": 0.5, "aten::add": 9.0}
    text = parts_text(parts)
    assert "data          200.0 ms per step, 25%" in text and "raise train.workers" in text
    assert "workers" not in parts_text({**parts, "data": 0.1})

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
from medcl3d.training.profile import part_of_forward, parts_text, read_parts
from medcl3d.training.run_folder import RunFolder
from medcl3d.training.step_advice import advice


def learn(folder: Path, steps: int, profile: bool) -> Tensor:
    torch.manual_seed(0)
    model = nn.Linear(4, 2)

    def batches(step: int) -> Iterator[Tensor]:
        for number in range(step, steps):
            yield torch.full((3, 4), float(number))

    def loss_of(wrapped: nn.Module, batch: Tensor) -> Loss:
        with part_of_forward("loss"):
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
    assert lines[5].split()[0] == "loss" and lines[5].endswith("in forward")
    read = read_parts(tmp_path / "a")
    assert read is not None and list(read) == [line.split()[0] for line in lines[1:6]]
    assert read["backward"] == float(lines[3].split()[1]) and read_parts(tmp_path / "b") is None
    trace = json.loads((tmp_path / "a" / "profile" / "trace.json").read_text())
    assert sum(one.get("name") == "step/backward" for one in trace["traceEvents"]) == 5
    assert "ui.perfetto.dev" in capsys.readouterr().out
    assert not (tmp_path / "b" / "profile").exists()


def test_a_run_that_is_too_short_has_no_profile(tmp_path: Path) -> None:
    learn(tmp_path / "run", 3, True)
    assert not (tmp_path / "run" / "profile").exists()


def test_a_run_that_ends_within_the_profiled_steps_is_averaged_over_its_own(tmp_path: Path) -> None:
    learn(tmp_path / "run", 6, True)
    lines = (tmp_path / "run" / "profile" / "times.txt").read_text().splitlines()
    operation = next(line.split() for line in lines if "step/backward" in line)
    assert lines[0] == f"profile of {operation[-1]} steps:" and int(operation[-1]) < 5


def test_parts_are_means_over_steps_and_shares_of_a_step() -> None:
    parts = {"data": 1.0, "forward": 1.0, "backward": 1.5, "optimizer": 0.5, "aten::add": 9.0}
    assert "data          200.0 ms per step, 25%" in parts_text(parts, 5)
    assert "data          500.0 ms per step, 25%" in parts_text(parts, 2)


FAST = {"data": 0.02, "forward": 1.0, "backward": 2.0, "optimizer": 0.1, "views": 0.2, "loss": 0.1}


@pytest.mark.parametrize(
    ("change", "train", "cores", "expected"),
    [
        ({}, {}, 4, ["the network takes 96%"]),
        ({"data": 0.4}, {"workers": 1}, 4, ["raise train.workers (now 1)"]),
        ({"data": 0.4}, {"workers": 2}, 2, ["with 2 workers on 2 cores: use more cores"]),
        ({"views": 1.5, "forward": 2.0}, {}, 4, ["views take 36%"]),
        ({"loss": 1.1, "forward": 2.0}, {}, 4, ["the loss takes 27%"]),
        ({"optimizer": 1.0}, {"samples_per_step": 8}, 4, ["raise train.samples_per_step (now 8)"]),
        ({"backward": 3.0}, {"grad_cache": 4}, 4, ["switch off train.grad_cache"]),
        ({"backward": 3.0}, {}, 4, ["the network takes"]),
        ({"data": 0.4, "optimizer": 1.0}, {}, 4, ["raise train.workers", "the optimiser takes"]),
    ],
)
def test_parts_that_take_long_are_named_with_what_to_change(
    change: dict[str, float], train: dict[str, int], cores: float, expected: list[str]
) -> None:
    found = list(advice({**FAST, **change}, {"train": train}, cores))
    assert len(found) == len(expected)
    assert all(part in line for part, line in zip(expected, found, strict=True))


def test_a_fine_tuning_has_no_parts_of_forward() -> None:
    parts = {name: FAST[name] for name in ("data", "forward", "backward", "optimizer")}
    assert [line.split(":")[0] for line in advice(parts, {}, 2)] == ["the network takes 96%"]

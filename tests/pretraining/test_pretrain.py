"""Pretraining from the command line: under torchrun, killed, resumed, with bad input."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from medcl3d.config.loading import parse
from medcl3d.core.errors import ConfigError
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.parts import assemble
from medcl3d.pretraining.pretrain import pretrain, sidecar
from medcl3d.sampling.batches import batches_from
from tests.test_cli import medcl3d

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "pretrain.py"
RATES = ("samples_per_s", "data_wait", "peak_memory_mb")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def config_of(
    store: Path, out: Path, pairs: str = "voxel_correspondence", objective: str = "dense", **train: object
) -> dict[str, object]:
    return {
        "data": {"root": str(store), "patch_size": [16, 16, 16], "smaller_than_patch": "pad"},
        "pairs": pairs,
        "views": "mri",
        "encoder": {"unet3d": {"channels": [4, 8, 8], "strides": [1, 2, 2]}},
        "objective": objective,
        "train": {
            "steps": 12,
            "samples_per_step": 4,
            "log_every": 1,
            "checkpoint_every": 3,
            "precision": "float32",
            **train,
        },
        "out_dir": str(out),
    }


def write(path: Path, config: dict[str, object]) -> Path:
    path.write_text(yaml.safe_dump(config))
    return path


def run(command: Sequence[str], check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *command], env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def curve(folder: Path) -> list[dict[str, float]]:
    """Logged metrics of every step, without timings."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in RATES} for row in rows]


@pytest.mark.parametrize(
    ("pairs", "objective", "loader"),
    [
        ("voxel_correspondence", "dense", "store"),
        # tests/objectives/test_two_ranks.py has simclr, tests/sampling the TorchIO loader.
        pytest.param("overlapping_crops", "simclr", "store", marks=pytest.mark.slow),
        pytest.param("overlapping_crops", "dense", "store", marks=pytest.mark.slow),
        pytest.param("same_patient", "simclr", "torchio", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_train_as_one_process(
    tiny_store: Path, tmp_path: Path, pairs: str, objective: str, loader: str
) -> None:
    """One process reads the store; two ranks use the loader under test."""
    one = write(tmp_path / "one.yaml", config_of(tiny_store, tmp_path / "one", pairs, objective, steps=4))
    two = write(
        tmp_path / "two.yaml",
        config_of(tiny_store, tmp_path / "two", pairs, objective, steps=4) | {"loader": loader},
    )
    run([str(TOOL), str(one)])
    run(["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(TOOL), str(two)])
    for alone, shared in zip(curve(tmp_path / "one"), curve(tmp_path / "two"), strict=True):
        for name in (
            "loss",
            "positives_per_anchor",
            "effective_negatives",
            "fraction_ignored",
            "gradient_norm",
        ):
            assert shared[name] == pytest.approx(alone[name], rel=2e-3), (alone["step"], name)
    weights = load_file(tmp_path / "two" / "encoder.safetensors")
    for name, tensor in load_file(tmp_path / "one" / "encoder.safetensors").items():
        torch.testing.assert_close(weights[name], tensor, atol=2e-3, rtol=2e-2, msg=name)


@pytest.mark.slow  # tests/training/test_stop.py has two ranks
@pytest.mark.parametrize(("number", "workers"), [("SIGTERM", 0), ("SIGINT", 2), ("SIGHUP", 2)])
def test_a_signal_stops_a_run_after_one_step_and_it_resumes(
    tiny_store: Path, tmp_path: Path, number: str, workers: int
) -> None:
    """A terminal sends Ctrl-C and SIGHUP to the loader's workers too."""
    whole = write(tmp_path / "whole.yaml", config_of(tiny_store, tmp_path / "whole", steps=40))
    cut = write(tmp_path / "cut.yaml", config_of(tiny_store, tmp_path / "cut", steps=40, workers=workers))
    run([str(TOOL), str(whole)])
    process = subprocess.Popen(
        [sys.executable, str(TOOL), str(cut)],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # ignored if pytest runs under nohup
    )
    log = tmp_path / "cut" / "metrics.jsonl"
    while process.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < 4):
        time.sleep(0.01)
    os.killpg(process.pid, signal.Signals[number])
    _, errors = process.communicate(timeout=60)
    status = json.loads((tmp_path / "cut" / "status.json").read_text())
    assert (
        process.returncode == 75 and status["state"] == "stopped" and "rerun the command to resume" in errors
    )
    assert status["step"] == len(curve(tmp_path / "cut")) < 40
    resumed = run([str(TOOL), str(cut)])
    assert f"resumed from step {status['step']}" in resumed.stdout
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")


def dataset_of(store: Path, workers: int = 0, rank: int = 0, world: int = 1) -> list[torch.Tensor]:
    """The crops of the first four steps, from the loader."""
    import dataclasses

    parts = assemble(parse(config_of(store, Path("unused"), steps=4), PretrainConfig, "test"))
    dataset = dataclasses.replace(parts.dataset(), rank=rank, world_size=world)
    return [batch.main.crops for batch in batches_from(dataset, 4, workers, 0)]


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_do_not_change_samples(tiny_store: Path, workers: int) -> None:
    for without, with_workers in zip(dataset_of(tiny_store), dataset_of(tiny_store, workers), strict=True):
        assert torch.equal(without, with_workers)


def test_ranks_divide_the_samples_of_one_process(tiny_store: Path) -> None:
    shared = [dataset_of(tiny_store, rank=rank, world=2) for rank in range(2)]
    for alone, first, second in zip(dataset_of(tiny_store), *shared, strict=True):
        assert torch.equal(alone, torch.cat([first, second]))


def patients_of(store: Path, **fields: object) -> set[str]:
    config = config_of(store, Path("unused"), pairs="overlapping_crops", objective="simclr")
    parts = assemble(parse({**config, **fields}, PretrainConfig, "test"))
    assert set(parts.anchors.ids) <= set(range(len(parts.scans.rows)))
    return set(sidecar(parts, 0)["pretraining_patients"])


def test_pretraining_on_fewer_patients_draws_nested_selections(tiny_store: Path) -> None:
    everyone = patients_of(tiny_store)
    selections = [patients_of(tiny_store, num_patients=n) for n in range(1, len(everyone) + 1)]
    assert [len(found) for found in selections] == [*range(1, len(everyone) + 1)]
    assert selections[-1] == everyone
    assert all(small < large for small, large in itertools.pairwise(selections))
    assert len({frozenset(patients_of(tiny_store, num_patients=1, seed=seed)) for seed in range(8)}) > 1
    with pytest.raises(ConfigError, match=f"num_patients = 99: .* has {len(everyone)} patients"):
        patients_of(tiny_store, num_patients=99)


def test_a_run_folder_has_all_its_files_and_is_not_repeated(tiny_store: Path, tmp_path: Path) -> None:
    config = write(tmp_path / "a.yaml", config_of(tiny_store, tmp_path / "run", steps=2))
    run([str(TOOL), str(config)])
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {
        "config.yaml",
        "provenance.json",
        "status.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "encoder.safetensors",
        "encoder.json",
    } <= names
    sidecar = json.loads((tmp_path / "run" / "encoder.json").read_text())
    split = json.loads((tiny_store / "split.json").read_text())
    assert sidecar["decoder"] is True and set(sidecar["pretraining_patients"]).isdisjoint(split["test"])
    assert (tmp_path / "run" / "pictures" / "pairs.png").stat().st_size > 10_000
    before = (tmp_path / "run" / "encoder.safetensors").stat().st_mtime_ns
    assert "is done" in run([str(TOOL), str(config)]).stdout
    assert (tmp_path / "run" / "encoder.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (["train.stpes=3"], 2, r"train.stpes = 3: unknown key; did you mean 'steps'"),
        (["data.root=nowhere"], 3, r"nowhere: contains no finished store; run `medcl3d prepare"),
        (
            ["data.smaller_than_patch=error", "data.patch_size=[160,160,160]"],
            3,
            r"are smaller than data.patch_size = \(160, 160, 160\) .* set data.smaller_than_patch",
        ),
        (
            ["data.patch_size=[18,16,16]"],
            2,
            r"data.patch_size = \[18, 16, 16\] is not divisible by the coarsest stride",
        ),
        (["placebo=true", "pairs=overlapping_crops"], 2, r"no signal column"),
    ],
)
def test_bad_input_gives_one_line_and_no_run_folder(
    tiny_store: Path, tmp_path: Path, changes: list[str], code: int, message: str
) -> None:
    config = write(tmp_path / "a.yaml", config_of(tiny_store, tmp_path / "run"))
    done = medcl3d("pretrain", config, *changes)
    assert done.exit_code == code, done.stderr
    assert (
        re.search(message, done.stderr)
        and "Traceback" not in done.stderr
        and len(done.stderr.strip().splitlines()) == 1
    )
    assert not (tmp_path / "run").exists()


def test_a_dry_run_estimates_the_memory(
    tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twice the samples take twice the activations; chunks of the gradient cache those of a chunk."""
    found = {}
    for name, fields in {"8": [], "4": ["train.samples_per_step=4"], "cache": ["train.grad_cache=4"]}.items():
        path = write(
            tmp_path / f"{name}.yaml", config_of(tiny_store, tmp_path / name, "voxel_correspondence", "dense")
        )
        pretrain(path, ["train.samples_per_step=8", *fields], check=True)
        line = next(line for line in capsys.readouterr().out.splitlines() if "memory: about" in line)
        found[name] = float(line.split("estimated; ")[1].split(" MiB")[0])
    assert found["8"] == pytest.approx(2 * found["4"], rel=0.05)
    assert found["cache"] == pytest.approx(found["4"], rel=0.05)


def test_a_few_timed_steps_tell_the_time_of_a_run_and_write_nothing(
    tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = config_of(tiny_store, tmp_path / "run", "overlapping_crops", "simclr")
    pretrain(write(tmp_path / "a.yaml", fields), ["train.steps=1000000", "train.keep_steps=[7]"], time=True)
    line = next(line for line in capsys.readouterr().out.splitlines() if "time: about" in line)
    hours, step = re.search(r"about ([\d.]+) hours for 1000000 steps \(([\d.e-]+) s per step", line).groups()
    assert float(hours) * 3600 / 1e6 == pytest.approx(float(step), rel=0.1)
    assert not (tmp_path / "run").exists()

"""What `medcl3d doctor` reports on machines of several kinds, and on a configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from medcl3d import doctor as module
from medcl3d.config.loading import load
from medcl3d.core.errors import ConfigError
from medcl3d.distributed import memory
from medcl3d.doctor import doctor, of_convolutions, of_device, of_disk, of_memory, of_threads, usable_cores
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.parts import assemble
from medcl3d.training.profile import parts_text

CPU = torch.device("cpu")


def write_config(store: Path, folder: Path, samples: int) -> Path:
    config = {
        "data": {"root": str(store), "patch_size": [16, 16, 16]},
        "pairs": "overlapping_crops",
        "views": "mri",
        "encoder": {"unet3d": {"channels": [4, 8], "strides": [1, 2]}},
        "objective": "simclr",
        "train": {"steps": 4, "samples_per_step": samples},
        "out_dir": str(folder / "run"),
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    return folder / "c.yaml"


def test_a_report_names_machine_and_configuration(
    tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = doctor(write_config(tiny_store, tmp_path, 4), folder=tmp_path)
    printed = capsys.readouterr().out
    for words in (f"torch {torch.__version__}", "GPU", "3-D convolutions", "anchors in", "per process"):
        assert words in printed
    assert printed.strip().endswith("warnings") or printed.strip().endswith("1 warning")
    assert {"software", "device", "threads", "precision", "disk", "config"} <= {one.subject for one in found}
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"], "nothing is left behind"


def test_memory_beyond_what_is_available_is_a_warning(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "available_bytes", lambda: 1 << 20)
    (*_, last) = module.of_config(write_config(tiny_store, tmp_path, 4), [], CPU)
    assert "1.0 MiB are available; lower train.samples_per_step" in last.remedy


@pytest.mark.parametrize(("slowdown", "precision"), [(1.3, "auto"), (0.5, "auto"), (1.3, "bfloat16")])
def test_an_encoder_that_is_slower_in_the_precision_of_auto_is_a_warning(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slowdown: float, precision: str
) -> None:
    shapes: list[tuple[int, ...]] = []

    def seconds(model: Callable[[Tensor], Tensor], crops: Tensor, dtype: torch.dtype | None) -> float:
        shapes.append((*model(crops).shape[:1], *crops.shape[1:]))
        return 1.0 if dtype is None else slowdown

    monkeypatch.setattr(module, "_training_seconds", seconds)
    monkeypatch.setattr(module, "autocast_dtype", lambda *_: torch.bfloat16)
    config = load(write_config(tiny_store, tmp_path, 4), [f"train.precision={precision}"], PretrainConfig)
    found = list(module.of_network(assemble(config), CPU))
    if precision != "auto":
        assert not found and not shapes
        return
    assert shapes == [(4, 1, 16, 16, 16)] * 2 and f"takes {slowdown:.2f} times as long" in found[0].text
    assert found[0].remedy == ("set train.precision=float32" if slowdown > 1 else "")


@pytest.mark.parametrize(
    ("channels_last", "ratio", "remedy"),
    [(False, 0.5, "true"), (False, 2.0, ""), (True, 0.5, ""), (True, 2.0, "false"), (False, 0.95, "")],
)
def test_the_slower_layout_of_channels_is_a_warning(
    tiny_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    channels_last: bool,
    ratio: float,
    remedy: str,
) -> None:
    seen = []

    def seconds(model: Callable[[Tensor], object], crops: Tensor, _: object) -> float:
        model(crops)
        seen.append(len(seen))
        return [1.0, ratio][seen[-1]]

    monkeypatch.setattr(module, "_training_seconds", seconds)
    changes = [f"train.channels_last={channels_last}"]
    found = module.of_layout(
        assemble(load(write_config(tiny_store, tmp_path, 4), changes, PretrainConfig)), CPU
    )
    assert f"takes {ratio:.2f} times as long" in found.text
    assert found.remedy == (f"set train.channels_last={remedy}" if remedy else "")


@pytest.mark.parametrize(("quota", "cores"), [("50000 100000", 0.5), ("max 100000", None), ("", None)])
def test_cores_are_those_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: float | None
) -> None:
    whole = usable_cores()
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(module, "CGROUP_CPU", tmp_path / "cpu.max")
    assert usable_cores() == (whole if cores is None else cores)


def test_more_threads_than_cores_are_a_warning() -> None:
    assert not of_threads(2, 2.0, 1.5).remedy
    assert "OMP_NUM_THREADS=4" in of_threads(8, 4.0, 0.0).remedy
    assert "OMP_NUM_THREADS=1" in of_threads(2, 0.5, 0.0).remedy


def test_load_of_other_programs_is_a_warning_for_several_threads() -> None:
    assert "set OMP_NUM_THREADS=1 until they end" in of_threads(2, 2.0, 8.5).remedy
    assert not of_threads(1, 2.0, 8.5).remedy


@pytest.mark.parametrize("auto", [None, torch.bfloat16])
@pytest.mark.parametrize("ratio", [0.5, 0.95, 2.0])
def test_a_precision_that_is_slower_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, auto: torch.dtype | None, ratio: float
) -> None:
    """ratio: seconds in float32 divided by those in bfloat16."""
    monkeypatch.setattr(module, "_convolution_seconds", lambda _, dtype: ratio if dtype is None else 1.0)
    monkeypatch.setattr(module, "autocast_dtype", lambda *_: auto)
    remedy = of_convolutions(CPU).remedy
    if ratio == 2.0 and auto is None:
        assert remedy == "set train.precision=bfloat16"
    elif ratio == 0.5 and auto is not None:
        assert remedy == "set train.precision=float32"
    else:
        assert not remedy


def test_little_shared_memory_and_a_full_or_slow_disk_are_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "free_shared_bytes", lambda: 64 << 20)
    assert any("--shm-size" in finding.remedy for finding in of_memory())
    monkeypatch.setattr(module, "free_bytes", lambda _: 1 << 20)
    assert "use another disk" in of_disk(tmp_path).remedy
    monkeypatch.setattr(module, "free_bytes", lambda _: 1 << 40)
    monkeypatch.setattr(module, "SLOW_DISK", float("inf"))
    assert "use a local disk" in of_disk(tmp_path).remedy


def test_a_gpu_that_torch_cannot_use_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/dev/nvidia0")
    assert "see `nvidia-smi`" in of_device(CPU).remedy


def test_available_memory_is_within_the_limit_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text(str(300 << 20))
    (tmp_path / "memory.current").write_text(str(100 << 20))
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.available_bytes() == 200 << 20
    (tmp_path / "memory.max").write_text("max")
    free = memory.available_bytes()
    assert free is not None and free > 200 << 20


def test_free_memory_of_a_gpu_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a pretended GPU: this path has not run on a real one."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3 << 30, 8 << 30))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(module, "device_name", lambda: "some GPU")
    assert of_device(torch.device("cuda")).text == "2 GPUs, some GPU, 3.0 GiB of 8.0 GiB free"


def test_a_profiled_run_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = {"data": 0.5, "forward": 1.0, "backward": 2.0, "optimizer": 0.1, "views": 0.3, "loss": 0.1}
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "times.txt").write_text(f"{parts_text(seconds, 5)}\n\n aten::add  9.0 ms\n")
    (tmp_path / "config.yaml").write_text("train: {workers: 1}\n")
    first, *others = module.of_profile(tmp_path, 4.0)
    assert "720.0 ms: data 100.0 ms (14%)" in first.text and "of forward: views 8%, loss 3%" in first.text
    assert len(others) == 1 and "raise train.workers (now 1)" in others[0].remedy


def test_a_folder_without_a_profile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.profile=true"):
        list(module.of_profile(tmp_path, 4.0))

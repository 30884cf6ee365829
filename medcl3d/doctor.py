"""`medcl3d doctor`: report versions, devices and limits of this machine, and what makes runs slow or fail."""

from __future__ import annotations

import copy
import importlib.util
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from medcl3d.config.loading import load
from medcl3d.core.errors import ConfigError
from medcl3d.core.version import __version__
from medcl3d.distributed.environment import checkout, device_name
from medcl3d.distributed.memory import available_bytes
from medcl3d.distributed.precision import autocast, autocast_dtype
from medcl3d.io.disk_space import format_size, free_bytes
from medcl3d.io.shared_memory import REMEDY, free_shared_bytes
from medcl3d.io.yaml_file import read_yaml
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.parts import Pretraining, assemble
from medcl3d.pretraining.summary import binary_size, estimated_bytes, summary
from medcl3d.training.profile import read_parts
from medcl3d.training.speed import apply_cost_options
from medcl3d.training.step_advice import INSIDE, PARTS, advice

OPTIONAL = {
    "pydicom": "DICOM",
    "torchio": "loader=torchio",
    "blosc2": "compressed stores",
    "submitit": "executor: slurm",
}
LITTLE_SHARED, LITTLE_DISK, WRITTEN = 1 << 30, 5 << 30, 16 << 20
SLOW_DISK = 20e6  # bytes per second of synced writes: a busy network disk
CGROUP_CPU = Path("/sys/fs/cgroup/cpu.max")
SLOWER = 1.1
NUM_TIMES, SLOW_PASS_S = 5, 1.0


@dataclass(frozen=True)
class Finding:
    """One line of the report; `remedy` is set if something is wrong or slow."""

    subject: str
    text: str
    remedy: str = ""


def doctor(config: Path | None = None, overrides: Sequence[str] = (), folder: Path = Path()) -> list[Finding]:
    """Print and return the findings on this machine, and on a configuration or a run if one is given.

    config  a pretraining configuration, or the folder of a run with `train.profile: true`
    folder  where runs would be written
    """
    findings = []
    for finding in _findings(config, overrides, folder):
        print(f"{finding.subject:<12}{finding.text}", flush=True)
        if finding.remedy:
            print(f"{'':<12}warning: {finding.remedy}", flush=True)
        findings.append(finding)
    wrong = sum(bool(finding.remedy) for finding in findings)
    print(f"{wrong} warning{'s' if wrong != 1 else ''}")
    return findings


def _findings(config: Path | None, overrides: Sequence[str], folder: Path) -> Iterator[Finding]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    yield from software()
    yield of_device(device)
    yield of_threads(torch.get_num_threads(), usable_cores(), os.getloadavg()[0])
    yield of_convolutions(device)
    yield from of_memory()
    yield of_disk(folder)
    if config is not None and config.is_dir():
        yield from of_profile(config, usable_cores())
    elif config is not None:
        yield from of_config(config, overrides, device)


def software() -> Iterator[Finding]:
    """Versions, and optional packages that are missing."""
    commit = checkout()["commit"]
    source = f" (commit {commit[:10]})" if commit else ""
    yield Finding(
        "software",
        f"medcl3d {__version__}{source}, Python {platform.python_version()}, torch {torch.__version__}",
    )
    missing = [f"{name} ({use})" for name, use in OPTIONAL.items() if importlib.util.find_spec(name) is None]
    if missing:
        yield Finding("optional", f"not installed: {', '.join(missing)}")
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        yield Finding("optional", "no C++ compiler: train.compile cannot be used")


def of_device(device: torch.device) -> Finding:
    """The device of a run; a warning if a GPU exists that torch cannot use."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        number = torch.cuda.device_count()
        memory = f"{binary_size(free)} of {binary_size(total)} free"
        return Finding("device", f"{number} GPU{'s' if number > 1 else ''}, {device_name()}, {memory}")
    text = f"no GPU that torch can use; {device_name()}"
    if Path("/dev/nvidia0").exists():
        built = "without CUDA" if torch.version.cuda is None else f"for CUDA {torch.version.cuda}"
        remedy = f"an NVIDIA device exists, but torch is built {built} or finds no driver; see `nvidia-smi`"
        return Finding("device", text, remedy)
    return Finding("device", text)


def usable_cores() -> float:
    """Processor cores that this process may use: its affinity, and the limit of a container."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        quota, period = CGROUP_CPU.read_text(encoding="ascii").split()
        return min(cores, int(quota) / int(period))
    except (OSError, ValueError):  # no container, or no limit ("max")
        return cores


def of_threads(threads: int, cores: float, load: float) -> Finding:
    """Threads of torch; a warning if there are more than cores, or if other programs use the cores.

    load: processes that run or wait for a core, mean over a minute
    """
    text = f"{threads} of torch on {cores:g} core{'s' if cores != 1 else ''}, load {load:.1f}"
    if threads > cores:
        remedy = f"threads wait for each other; set OMP_NUM_THREADS={max(1, int(cores))}"
        return Finding("threads", text, remedy)
    if threads > 1 and load > cores:
        remedy = "other programs use the cores, and threads that wait for each other become many times slower"
        return Finding("threads", text, f"{remedy}; set OMP_NUM_THREADS=1 until they end")
    return Finding("threads", text)


def of_convolutions(device: torch.device) -> Finding:
    """Speed of a 3-D convolution in float32 and bfloat16; a warning if `precision: auto` takes the slower."""
    seconds = {dtype: _convolution_seconds(device, dtype) for dtype in (None, torch.bfloat16)}
    ratio = seconds[None] / seconds[torch.bfloat16]
    auto = autocast_dtype("auto", device)
    faster, slower = ("bfloat16", "float32") if ratio > 1 else ("float32", "bfloat16")
    chosen = "float32" if auto is None else "bfloat16"
    text = (
        f"3-D convolutions are {max(ratio, 1 / ratio):.1f} times as fast in {faster} as in {slower}; "
        f"precision: auto uses {chosen}"
    )
    wrong = chosen == slower and max(ratio, 1 / ratio) > SLOWER
    return Finding("precision", text, f"set train.precision={faster}" if wrong else "")


def _convolution_seconds(device: torch.device, dtype: torch.dtype | None) -> float:
    """Shortest seconds of a forward and backward pass: 16 to 32 channels, 4 crops of 32^3."""
    layer = torch.nn.Conv3d(16, 32, 3, padding=1).to(device)
    return _training_seconds(layer, torch.rand(4, 16, 32, 32, 32, device=device), dtype)


def _training_seconds(model: Callable[[Tensor], Tensor], crops: Tensor, dtype: torch.dtype | None) -> float:
    """Shortest seconds of a forward and backward pass of `NUM_TIMES`; of one, if it is slow.

    Without instructions for it, bfloat16 takes many times as long as float32.
    """
    device, best = crops.device, float("inf")
    for _ in range(NUM_TIMES):
        start = time.perf_counter()
        with autocast(device, dtype):
            model(crops).float().square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
        if best > SLOW_PASS_S:
            break
    return best


def of_memory() -> Iterator[Finding]:
    """Memory that is available to processes, and the shared memory of loader workers."""
    available = available_bytes()
    if available is not None:
        yield Finding("memory", f"{binary_size(available)} available")
    shared = free_shared_bytes()
    if shared is not None:
        little = f"little for train.workers above 0: {REMEDY}" if shared < LITTLE_SHARED else ""
        yield Finding("shared", f"{binary_size(shared)} free in /dev/shm", little)


def of_disk(folder: Path) -> Finding:
    """Free space of a folder and the speed of synced writes; warnings if either is low."""
    free = free_bytes(folder)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            start = time.perf_counter()
            file.write(os.urandom(WRITTEN))
            file.flush()
            os.fsync(file.fileno())
            speed = WRITTEN / (time.perf_counter() - start)
    except OSError as error:
        return Finding(
            "disk", f"{folder.resolve()} cannot be written ({error.strerror})", "use another folder"
        )
    text = f"{format_size(free)} free in {folder.resolve()}, synced writes at {format_size(int(speed))}/s"
    if free < LITTLE_DISK:
        return Finding("disk", text, "stores and checkpoints may not fit; use another disk")
    slow = "checkpoints and stores are slow to write; use a local disk" if speed < SLOW_DISK else ""
    return Finding("disk", text, slow)


def of_profile(run: Path, cores: float) -> Iterator[Finding]:
    """The parts of a profiled run's step, and what to change about those that take long.

    ConfigError: the folder is not a run, or has no profile.
    """
    parts = read_parts(run)
    if parts is None or not (run / "config.yaml").is_file():
        problem, remedy = "has no profile of a run", "run it for 9 steps or more with train.profile=true"
        raise ConfigError(problem=problem, remedy=remedy, place=str(run))
    total = sum(parts[name] for name in PARTS)
    times = ", ".join(f"{name} {parts[name]:.1f} ms ({parts[name] / total:.0%})" for name in PARTS)
    inside = ", ".join(f"{name} {parts[name] / total:.0%}" for name in INSIDE if name in parts)
    yield Finding("step", f"{total:.1f} ms: {times}{f'; of forward: {inside}' if inside else ''}")
    for line in advice(parts, read_yaml(run / "config.yaml"), cores):
        yield Finding("step", "", line)


def of_network(parts: Pretraining, device: torch.device) -> Iterator[Finding]:
    """Speed of the encoder in the precision of `auto` and in float32; a warning if float32 is faster.

    Nothing if they are one precision, or if the configuration names one.
    """
    auto = autocast_dtype("auto", device)
    if auto is None or parts.config.train.precision != "auto":
        return
    encoder = copy.deepcopy(parts.learner.network.encoder).to(device)
    crops = torch.rand(4, parts.store.num_channels, *parts.config.data.patch_size, device=device)
    float32, other = (_training_seconds(lambda x: encoder(x).pooled, crops, dtype) for dtype in (None, auto))
    name = str(auto).removeprefix("torch.")
    text = f"a pass of the encoder takes {other / float32:.2f} times as long in {name} as in float32"
    yield Finding("precision", text, "set train.precision=float32" if other > SLOWER * float32 else "")


def of_layout(parts: Pretraining, device: torch.device) -> Finding:
    """Speed of the encoder with channels last and first; a warning if `train.channels_last` is the slower."""
    train = parts.config.train
    crops = torch.rand(4, parts.store.num_channels, *parts.config.data.patch_size, device=device)
    dtype, seconds = autocast_dtype(train.precision, device), []
    for last in (False, True):
        network = copy.deepcopy(parts.learner.network).to(device)
        apply_cost_options(network, channels_last=last)
        encoder = network.encoder
        seconds.append(_training_seconds(lambda x, encoder=encoder: encoder(x).pooled, crops, dtype))  # type: ignore[misc]
    ratio = seconds[True] / seconds[False]
    text = f"a pass of the encoder takes {ratio:.2f} times as long with channels last as with channels first"
    is_slow = max(ratio, 1 / ratio) > SLOWER and train.channels_last == (ratio > 1)
    other = str(not train.channels_last).lower()
    return Finding("channels", text, f"set train.channels_last={other}" if is_slow else "")


def of_config(config: Path, overrides: Sequence[str], device: torch.device) -> Iterator[Finding]:
    """The summary of a pretraining, and its memory compared with what is available."""
    parts = assemble(load(config, overrides, PretrainConfig))
    yield from of_network(parts, device)
    yield of_layout(parts, device)
    yield Finding("config", summary(parts).replace("\n", f"\n{'':<12}"))
    needed, activations = estimated_bytes(parts, device)
    available = torch.cuda.mem_get_info()[0] if device.type == "cuda" else available_bytes()
    text = f"about {binary_size(needed)} per process, {binary_size(activations)} of it for activations"
    if available is None or needed < available:
        yield Finding("config", text)
        return
    fields = "train.samples_per_step, data.patch_size or encoder channels"
    remedy = f"{binary_size(available)} are available; lower {fields}, or set train.grad_cache"
    yield Finding("config", text, remedy)

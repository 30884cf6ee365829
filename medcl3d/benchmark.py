"""What this machine does in a second: pairs drawn, views made (beside TorchIO), data waited for in a step.

Everything is measured on a simulated cohort that is made for it. Rates of pairs and views are per
second of one core's processor time, so that what else the machine does counts little; those that are
compared take turns in one run, and a ratio is given with its interval over these turns.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medcl3d.data.loader import DataConfig, PairDataset, Plan, make_views, pretraining_scans
from medcl3d.data.store import Store
from medcl3d.errors import ConfigError, DataError
from medcl3d.evaluation.statistics import mean_interval
from medcl3d.pairs import PAIRS
from medcl3d.registry import Choice
from medcl3d.training.seeding import Stream, generator
from medcl3d.views import VIEWS

PATCH = (32, 32, 32)
CROPS_PER_VOLUME = 8  # what TorchIO's queue takes of a volume before it reads the next
CROPS_PER_BATCH = 32
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


@dataclass(frozen=True)
class Scale:
    """How much is measured. `num_patients` of up to two visits with two modalities, `shape` voxels each."""

    num_patients: int = 6
    shape: tuple[int, int, int] = (96, 96, 96)
    repeats: int = 7
    crops: int = 256
    steps: int = 12
    samples_per_step: int = 8
    depth: int = 18


@dataclass(frozen=True)
class Table:
    """One benchmark's figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


class Bench:
    """A simulated cohort, prepared in a folder, and how much is to be measured on it."""

    def __init__(self, folder: Path, scale: Scale):
        self.folder, self.scale = folder, scale

    @cached_property
    def store(self) -> Store:
        """The prepared cohort."""
        from medcl3d.data.options import prepare_options
        from medcl3d.data.prepare import prepare

        given = prepare_options("simulated", {"num_patients": self.scale.num_patients, "shape": list(self.scale.shape), "workers": 1})
        prepare("simulated", None, self.folder / "store", fields=given.fields, options=given.options)
        return Store.open(self.folder / "store")

    def dataset(self, strategy: Any, recipe: Any, samples_per_step: int) -> PairDataset:
        """The loader's own dataset, as pretraining uses it. ConfigError, DataError where the strategy cannot work on this cohort."""
        scans = pretraining_scans(self.store, DataConfig(root=self.store.root, patch_size=PATCH, smaller_than_patch="skip"))
        anchors = strategy.anchors(scans.collection)
        num_points = strategy.num_points if getattr(strategy, "relates_points", False) else 0
        return PairDataset(self.store, scans, strategy, recipe, Plan(anchors.ids, samples_per_step, 0), 1 << 30, num_points=num_points)


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Torch on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def cpu_seconds(work: Callable[[], Any]) -> float:
    """Processor time of this process for one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def take_turns(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, np.ndarray]:
    """Seconds ``[repeats]`` of each, measured in turn after a call that warms it up."""
    for work in works.values():
        work()
    seconds = [{name: cpu_seconds(work) for name, work in works.items()} for _ in range(repeats)]
    return {name: np.array([one[name] for one in seconds]) for name in works}


def geometric(values: np.ndarray, form: str = ".0f") -> str:
    """Geometric mean of ``[repeats]`` with its 95% interval (Student's t on logarithms)."""
    interval = mean_interval(np.log(values))
    return f"{math.exp(interval.mean):{form}} ({math.exp(interval.low):{form}} to {math.exp(interval.high):{form}})"


def pairs(bench: Bench) -> Table:
    """Every pair strategy with its own defaults, as the loader draws it: views, crops from the memory map, augmentation's parameters."""
    rows = []
    num = max(1, bench.scale.crops // 2)
    _ = bench.store  # a cohort that cannot be made is no strategy's fault
    recipe = VIEWS.build(Choice("mri"))
    for name in PAIRS.names():
        try:
            strategy = PAIRS.build(Choice(name, _defaults(name)))
            dataset = bench.dataset(strategy, recipe, num)
            collection, anchors = dataset.scans.collection, dataset.plan.samples(0)[1]
            num_views = len(strategy.sample(collection, int(anchors[0]), generator(0, 0, 0, Stream.SAMPLE)))
        except (ConfigError, DataError) as error:
            rows.append((name, "-", "-", "-", f"not measured: {str(error).split(';')[0]}"))
            continue

        def draw(strategy: Any = strategy, collection: Any = collection, anchors: np.ndarray = anchors) -> None:
            for i, anchor in enumerate(anchors):
                strategy.sample(collection, int(anchor), generator(0, 0, i, Stream.SAMPLE))

        def load(dataset: PairDataset = dataset) -> None:
            dataset[0]

        with one_core():
            seconds = take_turns({"draw": draw, "load": load}, bench.scale.repeats)
        drawn, loaded = num / seconds["draw"], num / seconds["load"]
        rows.append((name, geometric(drawn), geometric(loaded), geometric(loaded * num_views), f"{num_views} views a sample"))
    note = (
        f"Crops of {_by(PATCH)} voxels, processor time of one core. "
        "A sample loaded: drawn, its crops read, its augmentation drawn, its keys made."
    )
    return Table("Pairs", ("strategy", "samples drawn a second", "samples loaded a second", "crops a second", ""), tuple(rows), note)


def _defaults(name: str) -> dict[str, Any]:
    """The fields of a strategy with their defaults. ConfigError where one has none."""
    from medcl3d.config import describe

    if required := [field.name for field in describe(PAIRS, name) if field.default == "required"]:
        raise ConfigError(f"{name} needs {', '.join(required)}")
    parsed = PAIRS.schema(name).validate_json("{}")
    return {field: getattr(parsed, field) for field in type(parsed).model_fields}


def views(bench: Bench) -> Table:
    """Crops a second read and made into views by the `mri` recipe, beside TorchIO's queue with the same transforms."""
    dataset = bench.dataset(PAIRS.build(Choice("augmented_views")), VIEWS.build(Choice("mri")), CROPS_PER_BATCH // 2)
    num_batches = max(1, bench.scale.crops // CROPS_PER_BATCH)
    batches = iter(range(1 << 30))

    def ours() -> None:
        for _ in range(num_batches):
            make_views(dataset[next(batches)], dataset.recipe)

    paths = _write_volumes(bench)
    works = {
        "medcl3d": ours,
        "TorchIO, each crop transformed": _torchio_epochs(paths, num_batches, each_crop=True),
        "TorchIO, each volume transformed": _torchio_epochs(paths, num_batches, each_crop=False),
    }
    with one_core(), _one_thread_in_simpleitk():
        seconds = take_turns(works, bench.scale.repeats)
    crops = num_batches * CROPS_PER_BATCH
    rows = tuple(
        (name, geometric(crops / one), "1" if name == "medcl3d" else geometric(one / seconds["medcl3d"], ".1f"))
        for name, one in seconds.items()
    )
    volume = _by(dataset.scans.collection.shapes[0])
    note = (
        f"Crops of {_by(PATCH)} voxels out of volumes of {volume}, processor time of one core, {bench.scale.repeats} turns. Flip, affine, "
        "blur, low resolution, noise and gamma have equal strengths and probabilities; medcl3d also changes contrast and brightness and "
        "cuts boxes out, and lowers the resolution of three axes where TorchIO does one. "
        f"TorchIO: `Queue` ({CROPS_PER_VOLUME} crops a volume, uncompressed NIfTI) and `SubjectsLoader`, without workers; transforming "
        f"each volume, its usual way, gives all {CROPS_PER_VOLUME} crops of a volume one augmentation."
    )
    return Table("Views", ("pipeline", "crops a second", "medcl3d is faster by"), rows, note)


def _write_volumes(bench: Bench) -> list[Path]:
    """The store's scans as uncompressed NIfTI, TorchIO's best case."""
    import nibabel

    store, paths = bench.store, []
    for scan in range(len(store)):
        paths.append(bench.folder / f"{scan}.nii")
        nibabel.Nifti1Image(store.read_volume(scan)[0], store.collection.affines[scan]).to_filename(paths[-1])
    return paths


def torchio_transform() -> Any:
    """What TorchIO has of the `mri` recipe, at its default strengths and probabilities."""
    import torchio as tio

    recipe = VIEWS.build(Choice("mri"))
    space, grey = recipe.spatial, recipe.intensity
    return tio.Compose(
        [
            tio.RandomFlip(axes=(0, 1, 2), flip_probability=space.flip_probability[0]),
            tio.RandomAffine(scales=space.scale, degrees=space.rotation_degrees, isotropic=True, p=space.affine_probability),
            tio.RandomBlur(std=grey.blur_sigma, p=grey.blur_probability),
            tio.RandomAnisotropy(downsampling=(1, 1 / grey.low_resolution[0]), p=grey.low_resolution_probability),
            tio.RandomNoise(std=(0, grey.noise_std), p=grey.noise_probability),
            tio.RandomGamma(log_gamma=(math.log(grey.gamma[0]), math.log(grey.gamma[1])), p=grey.gamma_probability),
        ]
    )


def _torchio_epochs(paths: Sequence[Path], num_batches: int, *, each_crop: bool) -> Callable[[], None]:
    """A call that takes batches from TorchIO's queue."""
    import torchio as tio

    transform = torchio_transform()
    crops = num_batches * CROPS_PER_BATCH
    volumes = math.ceil(crops / CROPS_PER_VOLUME)

    class TransformingSampler(tio.UniformSampler):
        def __call__(self, subject: Any, num_patches: int | None = None) -> Generator[Any, None, None]:
            yield from (transform(crop) for crop in super().__call__(subject, num_patches))

    def run() -> None:
        subjects = [tio.Subject(image=tio.ScalarImage(paths[i % len(paths)])) for i in range(volumes)]
        data = tio.SubjectsDataset(subjects, transform=None if each_crop else transform)
        sampler = TransformingSampler(PATCH) if each_crop else tio.UniformSampler(PATCH)
        queue = tio.Queue(data, max_length=4 * CROPS_PER_VOLUME, samples_per_volume=CROPS_PER_VOLUME, sampler=sampler, num_workers=0)
        seen = sum(len(batch["image"][tio.DATA]) for batch in tio.SubjectsLoader(queue, batch_size=CROPS_PER_BATCH))
        if seen != crops:
            raise RuntimeError(f"TorchIO gave {seen} crops, {crops} were measured for medcl3d")

    return run


@contextlib.contextmanager
def _one_thread_in_simpleitk() -> Iterator[None]:
    import SimpleITK

    threads = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def step(bench: Bench) -> Table:
    """A short pretraining with and without a process that reads ahead: how long a step takes, and which part of it waits for data."""
    rows = []
    for workers in (0, 1):
        logged = _pretrain(bench, workers)
        waits = np.array([row["data_wait"] for row in logged])
        rates = np.array([row["samples_per_s"] for row in logged])
        rows.append((str(workers), geometric(bench.scale.samples_per_step / rates * 1000), f"{100 * waits.mean():.1f}%"))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    note = (
        f"`overlapping_crops` with SimCLR and a residual network of depth {bench.scale.depth} on {device}: "
        f"{bench.scale.samples_per_step} samples of two views of {_by(PATCH)} voxels a step, wall time. "
        "Views are made on the device and are part of the step, not of the wait."
    )
    return Table("A training step", ("workers", "ms a step", "waiting for data"), tuple(rows), note)


def _pretrain(bench: Bench, workers: int) -> list[dict[str, float]]:
    """What a short pretraining logged, without its start."""
    from medcl3d.training.pretrain import pretrain

    every = max(1, bench.scale.steps // 6)
    run = bench.folder / f"step_{workers}"
    config = {
        "data": {"root": str(bench.store.root), "patch_size": list(PATCH), "smaller_than_patch": "skip"},
        "pairs": "overlapping_crops",
        "views": "mri",
        "encoder": {"resnet3d": {"depth": bench.scale.depth}},
        "objective": "simclr",
        "train": {"steps": bench.scale.steps, "samples_per_step": bench.scale.samples_per_step, "workers": workers, "log_every": every},
        "out_dir": str(run),
        "seed": 0,
    }
    path = bench.folder / f"step_{workers}.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        pretrain(path)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "data_wait" in row][1:]


BENCHMARKS: dict[str, Callable[[Bench], Table]] = {"pairs": pairs, "views": views, "step": step}


def benchmark(names: Sequence[str] = (), out: Path | None = None, scale: Scale | None = None) -> list[Table]:
    """Run benchmarks and print their tables.

    names: of `pairs`, `views`, `step`, default all; out: a file to write as well, Markdown (.md) or JSON (.json).
    ConfigError: an unknown name, or a file of another kind.
    """
    from rich.console import Console

    from medcl3d.data.atomic import write_text

    if unknown := [name for name in names if name not in BENCHMARKS]:
        raise ConfigError(f"benchmark {unknown[0]}: there is none of this name; there are {', '.join(BENCHMARKS)}")
    if out is not None and out.suffix not in (".md", ".json"):
        raise ConfigError(f"--out {out}: ends in neither .md nor .json; name a file that does")
    console = Console()
    machine, tables = describe_machine(), []
    console.print(machine)
    with tempfile.TemporaryDirectory(prefix="medcl3d-benchmark-") as folder:
        bench = Bench(Path(folder), scale or Scale())
        for name in names or BENCHMARKS:
            tables.append(BENCHMARKS[name](bench))
            console.print(_as_rich(tables[-1]))
            console.print(tables[-1].note)
            if out is not None:  # after each, so that a run that is cut short keeps what it measured
                plain = json.dumps({"machine": machine, "tables": [asdict(table) for table in tables]}, indent=2) + "\n"
                write_text(out, as_markdown(tables, machine) if out.suffix == ".md" else plain)
    return tables


def describe_machine() -> str:
    """What the figures depend on: cores, processor flags, device, versions, load. No names."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = Path("/proc/cpuinfo")
    known = (
        next((line.split(":")[1].split() for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))), [])
        if info.exists()
        else []
    )
    flags = [flag for flag in CPU_FLAGS if flag in known]
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchio", "numpy"))
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    python = ".".join(str(part) for part in sys.version_info[:3])
    return f"{cores} cores, {platform.machine()}{f' ({chr(32).join(flags)})' if flags else ''}{device}; Python {python}, {packages}{load}"


def _by(shape: Sequence[int] | np.ndarray) -> str:
    return " x ".join(str(int(n)) for n in shape)


def _as_rich(table: Table) -> Any:
    from rich.table import Table as RichTable

    drawn = RichTable(title=table.title)
    for column in table.columns:
        drawn.add_column(column)
    for row in table.rows:
        drawn.add_row(*row)
    return drawn


def as_markdown(tables: Sequence[Table], machine: str) -> str:
    """The tables as a page."""
    parts = [
        "# Performance",
        "",
        "Written by `medcl3d benchmark --out docs/performance.md`. Brackets: 95% interval.",
        "",
        f"Machine: {machine}.",
        "",
    ]
    for table in tables:
        lines = [table.columns, ("---",) * len(table.columns), *table.rows]
        parts += [f"## {table.title}", "", *(f"| {' | '.join(line)} |" for line in lines), "", table.note, ""]
    return "\n".join(parts)

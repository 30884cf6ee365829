"""Benchmark of preparing real scans, beside loops of nibabel with MONAI and of TorchIO."""

from __future__ import annotations

import contextlib
import io
import itertools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.measure import Bench, Table, compared, one_core, turns_of
from benchmarks.views import one_thread_in_simpleitk

OURS, UNCHANGED = "medcl3d prepare", "medcl3d prepare, intensity: none"
TITLE = "Preparing scans beside other libraries"
COLUMNS = ("voxels of", "program", "ms per scan", "speed-up of medcl3d")
SPACINGS = {"the scan": None, "3 mm": (3.0, 3.0, 3.0)}


def prepare(bench: Bench) -> Table:
    """Load, orient to RAS, resample, normalise and save real scans, one process each."""
    if not bench.scale.scans.is_dir():
        reason = f"not measured: {bench.scale.scans.name}, a BIDS folder of real scans, is missing"
        return Table(TITLE, COLUMNS, (("-", OURS, "-", reason),), "Scans are not in the repository.")
    raw = bench.folder / "raw"
    images = _copied(bench.scale.scans, raw, bench.scale.prepared)
    rows: list[tuple[str, ...]] = []
    for name, spacing in SPACINGS.items():
        with one_core(), one_thread_in_simpleitk():
            seconds = bench.turns(f"prepare, voxels of {name}", _works(bench.folder, raw, images, spacing))
        ms = {program: 1000 * one / len(images) for program, one in seconds.items()}
        rows += compared(ms, OURS, ".1f", first=[name])
    note = (
        f"{len(images)} scans of {bench.scale.scans.name}, read from compressed NIfTI, with axes in RAS, "
        "voxels of the size of the scan or of 3 mm, normalised to mean 0 and deviation 1, and written as "
        f"float16; processor time of one process, {turns_of(bench.scale.repeats)}. medcl3d also validates "
        "the files, finds the body and measures intensities in it, clips them at percentiles, warns of "
        "suspect values, hashes files and voxels, and writes a description of each scan, a manifest, a "
        "report and a split; with `intensity: none`, it neither finds the body nor changes intensities. "
        "MONAI: `Orientation`, `Spacing` and `NormalizeIntensity` (of voxels that are not 0) after nibabel; "
        "TorchIO: `ToCanonical`, `Resample` with antialiasing, as in medcl3d, and `ZNormalization` (of "
        "voxels above the mean)."
    )
    return Table(TITLE, COLUMNS, tuple(rows), note)


def _copied(scans: Path, raw: Path, count: int) -> list[Path]:
    """Copy the first patients of a BIDS folder; returns their images."""
    raw.mkdir()
    for subject in sorted(scans.glob("sub-*"))[:count]:
        shutil.copytree(subject, raw / subject.name)
    shutil.copy(scans / "dataset_description.json", raw)
    return sorted(raw.glob("sub-*/**/*.nii.gz"))


def _works(
    folder: Path, raw: Path, images: Sequence[Path], spacing: tuple[float, float, float] | None
) -> dict[str, Callable[[], None]]:
    """Each program as a function that prepares all images into a new folder."""
    import torchio as tio
    from monai.transforms import Compose, EnsureChannelFirst, NormalizeIntensity, Orientation, Spacing
    from monai.transforms import LoadImage as MonaiLoad

    from medcl3d.preprocessing.options import PrepareOptions
    from medcl3d.preprocessing.prepare import prepare as run

    numbers = itertools.count()
    options = PrepareOptions(spacing_mm=spacing or "keep", workers=1)
    resized = [] if spacing is None else [Spacing(spacing, mode="bilinear")]
    monai = Compose(
        [
            MonaiLoad(reader="NibabelReader", image_only=True),
            EnsureChannelFirst(),
            Orientation("RAS", labels=None),
            *resized,
            NormalizeIntensity(nonzero=True),
        ]
    )
    resampled = [] if spacing is None else [tio.Resample(spacing, antialias=True)]
    torchio = tio.Compose(
        [tio.ToCanonical(), *resampled, tio.ZNormalization(masking_method=tio.ZNormalization.mean)]
    )

    def made() -> Path:
        out = folder / f"prepared_{raw.name}_{spacing is None}_{next(numbers)}"
        out.mkdir()
        return out

    def ours(options: PrepareOptions = options) -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            prepared = run("bids", raw, made(), options=options)
        if prepared.num_ok != len(images):
            raise RuntimeError(f"{prepared.num_ok} of {len(images)} scans were prepared")

    def with_monai() -> None:
        out = made()
        for number, image in enumerate(images):
            np.save(out / f"{number}.npy", np.asarray(monai(str(image)), dtype=np.float16))

    def with_torchio() -> None:
        out = made()
        for number, image in enumerate(images):
            np.save(out / f"{number}.npy", torchio(tio.ScalarImage(image)).data.numpy().astype(np.float16))

    unchanged = partial(ours, replace(options, intensity="none"))
    return {OURS: ours, UNCHANGED: unchanged, "nibabel and MONAI": with_monai, "TorchIO": with_torchio}

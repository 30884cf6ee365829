"""Benchmark of views per second, compared with TorchIO."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import PATCH, Bench, Table, by, compared, one_core, turns_of
from medcl3d.config.field_types import Choice
from medcl3d.pairs import PAIRS
from medcl3d.sampling.augment import make_views
from medcl3d.store.store import Store
from medcl3d.views import VIEWS

CROPS_PER_VOLUME = 8  # crops per volume in TorchIO's queue
CROPS_PER_BATCH = 32


def views(bench: Bench) -> Table:
    """Crops read and augmented per second by the `mri` recipe, and by TorchIO with the same transforms."""
    dataset = bench.dataset(
        PAIRS.build(Choice("augmented_views")), VIEWS.build(Choice("mri")), CROPS_PER_BATCH // 2
    )
    num_batches = max(1, bench.scale.crops // CROPS_PER_BATCH)
    batches = iter(range(1 << 30))

    def ours() -> None:
        for _ in range(num_batches):
            make_views(dataset[next(batches)], dataset.recipe)

    paths = write_volumes(bench.folder, bench.store)
    works = {
        "medcl3d": ours,
        "TorchIO, each crop transformed": torchio_epochs(paths, num_batches, each_crop=True),
        "TorchIO, each volume transformed": torchio_epochs(paths, num_batches, each_crop=False),
    }
    with one_core(), one_thread_in_simpleitk():
        seconds = bench.turns("views", works)
    crops = num_batches * CROPS_PER_BATCH
    rates = {name: crops / one for name, one in seconds.items()}
    rows = tuple(compared(rates, "medcl3d", ratio_form=".1f", inverse=True))
    volume = by(dataset.scans.collection.shapes[0])
    note = (
        f"Crops of {by(PATCH)} voxels from volumes of {volume}, processor time of one core, "
        f"{turns_of(bench.scale.repeats)}. Flip, affine, blur, low resolution, noise and gamma have equal "
        "strengths and probabilities; medcl3d also changes contrast and brightness, cuts boxes out, and "
        f"lowers the resolution along three axes, TorchIO along one. TorchIO: `Queue` ({CROPS_PER_VOLUME} "
        "crops per volume, uncompressed NIfTI) and `SubjectsLoader`, without workers; its usual mode, "
        f"transforming volumes, gives all {CROPS_PER_VOLUME} crops of a volume the same augmentation."
    )
    return Table("Views", ("pipeline", "crops per second", "speed-up of medcl3d"), rows, note)


def write_volumes(folder: Path, store: Store) -> list[Path]:
    """Write the scans of a store as uncompressed NIfTI, the fastest case for TorchIO."""
    import nibabel

    paths = []
    for scan in range(len(store)):
        paths.append(folder / f"{store.root.name}_{scan}.nii")
        nibabel.Nifti1Image(store.read_volume(scan)[0], store.collection.affines[scan]).to_filename(paths[-1])
    return paths


def torchio_transform() -> Any:
    """The transforms of the `mri` recipe that TorchIO has, with the default strengths and probabilities."""
    import torchio as tio

    recipe = VIEWS.build(Choice("mri"))
    space, grey = recipe.spatial, recipe.intensity
    return tio.Compose(
        [
            tio.RandomFlip(axes=(0, 1, 2), flip_probability=space.flip_probability[0]),
            tio.RandomAffine(
                scales=space.scale, degrees=space.rotation_degrees, isotropic=True, p=space.affine_probability
            ),
            tio.RandomBlur(std=grey.blur_sigma, p=grey.blur_probability),
            tio.RandomAnisotropy(
                downsampling=(1, 1 / grey.low_resolution[0]), p=grey.low_resolution_probability
            ),
            tio.RandomNoise(std=(0, grey.noise_std), p=grey.noise_probability),
            tio.RandomGamma(
                log_gamma=(math.log(grey.gamma[0]), math.log(grey.gamma[1])), p=grey.gamma_probability
            ),
        ]
    )


def torchio_epochs(
    paths: Sequence[Path],
    num_batches: int,
    *,
    each_crop: bool = True,
    size: tuple[int, int, int] = PATCH,
    per_batch: int = CROPS_PER_BATCH,
) -> Callable[[], None]:
    """A function that reads `num_batches` batches from TorchIO's queue."""
    import torchio as tio

    transform = torchio_transform()
    crops = num_batches * per_batch
    volumes = math.ceil(crops / CROPS_PER_VOLUME)

    class TransformingSampler(tio.UniformSampler):
        def __call__(self, subject: Any, num_patches: int | None = None) -> Generator[Any, None, None]:
            yield from (transform(crop) for crop in super().__call__(subject, num_patches))

    def run() -> None:
        subjects = [tio.Subject(image=tio.ScalarImage(paths[i % len(paths)])) for i in range(volumes)]
        data = tio.SubjectsDataset(subjects, transform=None if each_crop else transform)
        sampler = TransformingSampler(size) if each_crop else tio.UniformSampler(size)
        queue = tio.Queue(
            data,
            max_length=4 * CROPS_PER_VOLUME,
            samples_per_volume=CROPS_PER_VOLUME,
            sampler=sampler,
            num_workers=0,
        )
        read = sum(len(batch["image"][tio.DATA]) for batch in tio.SubjectsLoader(queue, batch_size=per_batch))
        if read != crops:
            raise RuntimeError(f"TorchIO returned {read} crops, but {crops} were measured for medcl3d")

    return run


@contextlib.contextmanager
def one_thread_in_simpleitk() -> Iterator[None]:
    """Limit SimpleITK to one thread."""
    import SimpleITK

    threads = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)

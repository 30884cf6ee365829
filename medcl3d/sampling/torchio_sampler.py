"""The one module that imports TorchIO; others import it when they need it, since that takes a second.

`PairSampler` makes a TorchIO patch sampler of a pair strategy, for one's own `tio.Queue`; `torchio_batches`
trains through one (``loader: torchio``) and gives the very samples that the store's own loader gives.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
import torchio as tio

from medcl3d.core.collection import Collection
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.core.geometry import Box, Triple, ViewSpec, triple
from medcl3d.io.array_file import open_array
from medcl3d.io.shared_memory import num_bytes, refuse_too_little
from medcl3d.pairs import PairStrategy, crosses_patients
from medcl3d.preprocessing.resample import grid_at
from medcl3d.sampling.crops import to_grid, view_affine
from medcl3d.sampling.pair_dataset import PairDataset
from medcl3d.sampling.raw_batch import RawBatch
from medcl3d.store.quantise import AS_STORED, Scaling, unpack
from medcl3d.store.store import Store

ROW = "row"  # of an image: its scan in the collection
DRAW = "draw"  # of a subject: which sample of the run it is for
TOLD = "told"  # the boxes that strategies are told, in a form like the location's
FILL = "fill"  # of an image: what stands past its border
FEWEST_TO_SMOOTH = 4  # voxels along an axis that ITK's recursive Gaussian needs
OF_TORCHIO = ("data", "affine", "path", "stem", "type", ROW, FILL)


class PairSampler(tio.data.PatchSampler):
    """A TorchIO sampler that cuts a whole sample of a pair strategy: all views that belong together.

    Its items are Subjects with the images ``view_0``, ``view_1``, ..., each knowing its affine and, under ``scan``,
    the name of the image it was cut from; ``location`` is ``Int[views, 6]``, the first and last-plus-one voxel of
    each, as in TorchIO. So a `tio.Queue` may shuffle items, and positives stay together.

    A subject holds the scans of one patient as `ScalarImage`, of any shapes and spacings. What strategies ask for
    beside (session, session_days, modality, frame) are extra arguments of the image: ``tio.ScalarImage(path,
    session="2", session_days=180)``. Past the border of a scan stands its attribute `fill`, else its minimum.

    strategy    of `medcl3d.pairs`, one that stays within a patient (ConfigError otherwise)
    patch_size  voxels of a view
    collection  what the strategy sees (default: the subject's own scans); each image then has its `row` in it

    Draws come from torch's generator, as those of TorchIO do.
    """

    def __init__(self, strategy: PairStrategy, patch_size: int | Triple, collection: Collection | None = None):
        super().__init__(patch_size)
        refuse_across_patients(strategy)
        self.strategy, self.collection = strategy, collection

    def __call__(self, subject: tio.Subject, num_patches: int | None = None) -> Generator[tio.Subject]:
        """Samples of a subject, without end or `num_patches`. DataError where the strategy finds no anchor in it."""
        # TorchIO's own check asks for one grid in a subject: here every scan keeps its own.
        return self._generate_patches(subject, num_patches)

    def _generate_patches(self, subject: tio.Subject, num_patches: int | None = None) -> Generator[tio.Subject]:
        images = subject.get_images_dict()
        if self.collection is None:
            collection, names = collection_of(subject, triple(self.patch_size)), dict(enumerate(images))
        else:
            collection, names = self.collection, {cast(int, image[ROW]): name for name, image in images.items()}
        rng, anchor = np.random.default_rng(int(torch.randint(2**62, ()))), None
        if DRAW in subject:
            anchor, rng = cast(tuple[int, np.random.Generator], subject[DRAW])
        ids = self.strategy.anchors(collection).ids if anchor is None else np.array([anchor])
        while num_patches is None or num_patches > 0:
            views = self.strategy.sample(collection, int(rng.choice(ids)) if anchor is None else anchor, rng)
            if not names.keys() >= {view.scan for view in views}:
                raise DataError(f"pairs: {type(self.strategy).__name__} drew a scan of another patient; use loader: store")
            yield cut(images, names, collection, views)
            num_patches = None if num_patches is None else num_patches - 1


def refuse_across_patients(strategy: PairStrategy) -> None:
    """ConfigError for a strategy whose samples hold scans of several patients: a subject is one patient."""
    if crosses_patients(strategy):
        raise ConfigError(
            f"pairs: {type(strategy).__name__} draws scans of several patients together, and a TorchIO subject holds those of one; "
            "set loader: store"
        )


def cut(images: dict[str, Any], names: dict[int, str], collection: Collection, views: Sequence[ViewSpec]) -> tio.Subject:
    """The views as images of one Subject."""
    content: dict[str, Any] = {}
    for number, view in enumerate(views):
        image = images[names[view.scan]]
        voxels = to_grid(crop_of(image, view.box), view)
        content[f"view_{number}"] = tio.ScalarImage(
            tensor=voxels, affine=view_affine(collection, view).numpy(), scan=names[view.scan], role=view.role, **{ROW: view.scan}
        )
    content[tio.LOCATION] = torch.tensor([[*view.box.start, *view.box.stop] for view in views])
    content[TOLD] = torch.tensor([[*box.start, *box.stop] for box in (view.told or view.box for view in views)])
    return tio.Subject(content)


def crop_of(image: Any, box: Box) -> torch.Tensor:
    """The box of an image, ``[C, D, H, W]``; past its border stands its fill."""
    data, shape = image.data, image.spatial_shape
    inside = tuple(slice(max(0, a), max(0, min(n, b))) for a, b, n in zip(box.start, box.stop, shape, strict=True))
    part = data[(slice(None), *inside)]
    if part.shape[1:] == box.size:
        return part.clone()  # else the whole scan would stay in memory as long as its crop
    fill = torch.as_tensor(image.get(FILL, data.amin((1, 2, 3))), dtype=data.dtype)
    crop = fill[:, None, None, None].expand(-1, *box.size).clone()
    at = tuple(slice(s.start - a, s.start - a + n) for s, a, n in zip(inside, box.start, part.shape[1:], strict=True))
    if part.numel():
        crop[(slice(None), *at)] = part
    return crop


def collection_of(subject: tio.Subject, patch_size: Triple) -> Collection:
    """The scalar images of a subject as the collection of one patient; its name is ``subject["patient"]``, if there is one."""
    images = subject.get_images_dict()
    rows = [
        {"scan": name, "patient": str(subject.get("patient", "1")), "session": "1", "modality": "unknown", "frame": name}
        | {key: value for key, value in image.items() if key not in OF_TORCHIO}
        for name, image in images.items()
    ]
    shapes = np.array([image.spatial_shape for image in images.values()])
    boxes = np.stack([np.zeros_like(shapes), shapes], axis=1)
    affines = np.stack([image.affine for image in images.values()])
    found = Collection.of(pd.DataFrame(rows), shapes, affines, boxes)
    return replace(found, patch_size=patch_size)


def subject_of(store: Store, scans: dict[int, int]) -> tio.Subject:
    """Stored scans as a Subject that reads them when it is asked to.

    scans: row in the strategy's collection -> scan of the store.
    """
    content: dict[str, Any] = {}
    for row, scan in scans.items():
        path, affine = store.path(scan), store.collection.affines[scan]
        fill = store.scans[scan]["normalisation"]["fill"]
        content[str(store.scans[scan]["scan"])] = tio.ScalarImage(
            path, reader=partial(read_stored, affine=affine, scaling=store.scaling(scan)), verify_path=False, **{ROW: row, FILL: fill}
        )
    return tio.Subject(content)


def read_stored(path: str | Path, *, affine: np.ndarray, scaling: Scaling = AS_STORED) -> tuple[torch.Tensor, np.ndarray]:
    """A whole stored scan, ``Float32[C, D, H, W]``, and its affine: a reader for TorchIO's images."""
    return torch.from_numpy(unpack(open_array(Path(path))[...], scaling)), affine


class _SamplesOfRun(tio.SubjectsDataset):
    """Item i is the patient of this rank's sample i of the run, told which sample it is for."""

    def __init__(self, dataset: PairDataset):
        self.dataset = dataset
        patients = dataset.scans.collection.columns["patient"]
        self.subjects = {
            patient: subject_of(dataset.store, {int(row): int(dataset.scans.rows[row]) for row in np.flatnonzero(patients == patient)})
            for patient in np.unique(patients)
        }
        self.patients = patients
        super().__init__(list(self.subjects.values()))

    def __getitem__(self, index: int) -> tio.Subject:
        anchor, rng = self.dataset.draw(*divmod(int(index), self.dataset.per_rank))
        place = list(self.subjects).index(self.patients[anchor])
        subject = super().__getitem__(place)
        subject[DRAW] = anchor, rng
        return subject

    def dry_iter(self) -> Sequence[Any]:
        return range(self.dataset.steps * self.dataset.per_rank)


def torchio_batches(dataset: PairDataset, workers: int, start: int) -> Iterator[RawBatch]:
    """The batches of steps `start` .. `steps` - 1 of a dataset, cut by a `PairSampler` behind a `tio.Queue`.

    The queue is not shuffled, since the plan of the run already is; so the samples are those of the store's
    loader, also after a resume. Whole scans are read for each sample (by `workers`), which is what TorchIO does.
    """
    per_rank = dataset.per_rank
    samples = _SamplesOfRun(dataset)
    if workers and start < dataset.steps:
        refuse_too_little(num_bytes(samples[start * per_rank]), workers)
    queue = tio.Queue(
        samples,
        max_length=per_rank,
        samples_per_volume=1,
        sampler=PairSampler(dataset.strategy, dataset.scans.collection.patch_size, dataset.scans.collection),
        subject_sampler=range(start * per_rank, dataset.steps * per_rank),  # type: ignore[arg-type]
        num_workers=workers,
        shuffle_subjects=False,
        shuffle_patches=False,
    )
    loader = tio.SubjectsLoader(queue, batch_size=per_rank, sampler=range((dataset.steps - start) * per_rank))
    for step, batch in zip(range(start, dataset.steps), loader, strict=True):
        yield dataset.collate(step, *_views_and_crops(batch))


def _views_and_crops(batch: dict[str, Any]) -> tuple[list[tuple[ViewSpec, ...]], list[list[torch.Tensor]]]:
    """Of each sample of a collated batch, what was drawn and its voxels, ``[C, D, H, W]`` a view."""
    names = [name for name in batch if name.startswith("view_")]
    samples, crops = [], []
    for i in range(len(batch[tio.LOCATION])):
        views = []
        for name, place, told in zip(names, batch[tio.LOCATION][i], batch[TOLD][i], strict=True):
            box, shape = _box(place), triple(batch[name]["data"].shape[2:])
            grid = None if shape == box.size else shape
            views.append(ViewSpec(int(batch[name][ROW][i]), box, batch[name]["role"][i], grid, _box(told)))
        samples.append(tuple(views))
        crops.append([batch[name]["data"][i] for name in names])
    return samples, crops


def _box(place: torch.Tensor) -> Box:
    """From the first and last-plus-one voxel, ``Int[6]``."""
    return Box(triple(place[:3].tolist()), triple((place[3:] - place[:3]).tolist()))


def intensity_transforms(transforms: Sequence[Mapping[str, Mapping[str, Any]]]) -> tio.Compose:
    """TorchIO's intensity transforms, ``[{name: fields}]``, one after the other. ValueError says which one is not right."""
    known: dict[str, Callable[..., tio.Transform]] = {
        name: thing
        for name, thing in vars(tio).items()
        if name.startswith("Random") and isinstance(thing, type) and issubclass(thing, tio.transforms.IntensityTransform)
    }
    made = []
    for entry in transforms:
        for name, fields in entry.items():
            if name not in known:
                kind = "moves voxels; use the recipe in `first` for that" if hasattr(tio, name) else "is unknown to TorchIO"
                raise ValueError(f"transform {name} {kind}; there are {', '.join(sorted(known))}")
            try:
                made.append(known[name](**{key: tuple(v) if isinstance(v, list) else v for key, v in (fields or {}).items()}))
            except (TypeError, ValueError) as error:
                raise ValueError(f"transform {name}: TorchIO says: {str(error).splitlines()[0]}") from None
    if not made:
        raise ValueError("a list with one transform or more is needed")
    return tio.Compose(made)


def apply_transforms(transform: tio.Transform, voxels: torch.Tensor, spacing_mm: np.ndarray, seed: int) -> torch.Tensor:
    """A transform of one view ``[C, D, H, W]``, with its draws from `seed` and nothing else's draws touched."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        image = tio.ScalarImage(tensor=voxels, affine=np.diag([*np.asarray(spacing_mm, dtype=np.float64), 1.0]))
        done: torch.Tensor = transform(image).data
    return done


def resample(
    voxels: np.ndarray, affine: np.ndarray, spacing_mm: tuple[float, float, float], *, label: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Resample ``[C, X, Y, Z]`` to a spacing: linear (smoothed first where voxels grow) for images, nearest for labels.

    Returns voxels of the same dtype and their affine ``[4, 4]``; world positions stay.
    """
    grid = grid_at(voxels.shape[1:], affine, spacing_mm)
    thin = [0 if n >= FEWEST_TO_SMOOTH else FEWEST_TO_SMOOTH for n in voxels.shape[1:]]
    target: Any = grid if any(thin) or min(grid[0]) == 1 else spacing_mm  # of which TorchIO would make grids without a voxel
    make = tio.LabelMap if label else tio.ScalarImage
    image = make(tensor=torch.from_numpy(_repeated(voxels, thin)), affine=_moved(affine, thin))
    out = tio.Resample(target, image_interpolation="linear", label_interpolation="nearest", antialias=True)(image)
    return out.data.numpy().astype(voxels.dtype), np.asarray(out.affine, dtype=np.float64)


def _repeated(voxels: np.ndarray, times: Sequence[int]) -> np.ndarray:
    """More planes at both ends, like the outermost: what the filter takes to stand there anyway, and it wants a few to start from."""
    return np.pad(voxels, [(0, 0), *((n, n) for n in times)], mode="edge") if any(times) else np.ascontiguousarray(voxels)


def _moved(affine: np.ndarray, planes: Sequence[int]) -> np.ndarray:
    """The affine of a grid that starts so many planes earlier."""
    moved = affine.copy()
    moved[:3, 3] -= affine[:3, :3] @ np.asarray(planes)
    return moved

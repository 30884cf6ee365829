"""Batches through the queue loader of TorchIO, the same as those of `PairDataset`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchio as tio
from jaxtyping import Float, Float32, Float64, Int

from medcl3d.core.geometry import Box, ViewSpec, triple
from medcl3d.io.array_file import open_array
from medcl3d.io.shared_memory import num_bytes, refuse_too_little
from medcl3d.sampling.pair_dataset import PairDataset
from medcl3d.sampling.raw_batch import RawBatch
from medcl3d.sampling.torchio_sampler import DRAW, FILL, KEY_BOX, ROW, PairSampler
from medcl3d.store.quantise import AS_STORED, Scaling, unpack
from medcl3d.store.store import Store


def subject_of(store: Store, scans: dict[int, int]) -> tio.Subject:
    """Stored scans as a Subject that reads them on access.

    scans: row in the strategy's collection -> scan of the store.
    """
    content: dict[str, Any] = {}
    for row, scan in scans.items():
        path, affine = store.path(scan), store.collection.affines[scan]
        fill = store.scans[scan]["normalisation"]["fill"]
        name = str(store.scans[scan]["scan"])
        content[name] = tio.ScalarImage(  # type: ignore[no-untyped-call]  # no types
            path,
            reader=partial(read_stored, affine=affine, scaling=store.scaling(scan)),
            verify_path=False,
            **{ROW: row, FILL: fill},
        )
    return tio.Subject(content)


def read_stored(
    path: str | Path, *, affine: Float64[np.ndarray, "4 4"], scaling: Scaling = AS_STORED
) -> tuple[Float32[torch.Tensor, "C D H W"], Float64[np.ndarray, "4 4"]]:
    """A whole stored scan, ``Float32[C, D, H, W]``, and its affine: a reader for TorchIO's images."""
    return torch.from_numpy(unpack(open_array(Path(path))[...], scaling)), affine


class _SamplesOfRun(tio.SubjectsDataset):
    """Item i is the patient of this rank's sample i of the run, with the number of the sample."""

    def __init__(self, dataset: PairDataset):
        self.dataset = dataset
        patients = dataset.scans.collection.columns["patient"]
        self.subjects = {
            patient: subject_of(
                dataset.store,
                {int(row): int(dataset.scans.rows[row]) for row in np.flatnonzero(patients == patient)},
            )
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
    loader, also after a resume. Whole scans are read for each sample (by `workers`), as TorchIO does.
    """
    per_rank = dataset.per_rank
    samples = _SamplesOfRun(dataset)
    if workers and start < dataset.steps:
        refuse_too_little(num_bytes(samples[start * per_rank]), workers)
    subjects = range(start * per_rank, dataset.steps * per_rank)
    queue = tio.Queue(
        samples,
        max_length=per_rank,
        samples_per_volume=1,
        sampler=PairSampler(dataset.strategy, dataset.scans.collection.patch_size, dataset.scans.collection),
        subject_sampler=subjects,  # type: ignore[arg-type]  # not a Sampler
        num_workers=workers,
        shuffle_subjects=False,
        shuffle_patches=False,
    )
    loader = tio.SubjectsLoader(queue, batch_size=per_rank, sampler=range((dataset.steps - start) * per_rank))
    for step, batch in zip(range(start, dataset.steps), loader, strict=True):
        yield dataset.collate(step, *_views_and_crops(batch))


def _views_and_crops(
    batch: dict[str, Any],
) -> tuple[list[tuple[ViewSpec, ...]], list[list[Float[torch.Tensor, "C _ _ _"]]]]:
    """Of each sample of a collated batch, what was drawn and its voxels, ``[C, D, H, W]`` a view."""
    names = [name for name in batch if name.startswith("view_")]
    samples, crops = [], []
    for i in range(len(batch[tio.LOCATION])):
        views = []
        for name, place, key_box in zip(names, batch[tio.LOCATION][i], batch[KEY_BOX][i], strict=True):
            box, shape = _box(place), triple(batch[name]["data"].shape[2:])
            grid = None if shape == box.size else shape
            views.append(ViewSpec(int(batch[name][ROW][i]), box, batch[name]["role"][i], grid, _box(key_box)))
        samples.append(tuple(views))
        crops.append([batch[name]["data"][i] for name in names])
    return samples, crops


def _box(place: Int[torch.Tensor, 6]) -> Box:
    """From the first and last-plus-one voxel, ``Int[6]``."""
    return Box(triple(place[:3].tolist()), triple((place[3:] - place[:3]).tolist()))

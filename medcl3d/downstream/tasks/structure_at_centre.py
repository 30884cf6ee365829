"""Classification of the structure at the centre of a crop: a test of anatomy without a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medcl3d.config.field_types import PositiveInt
from medcl3d.core.errors import ConfigError
from medcl3d.core.geometry import Box, Triple, triple
from medcl3d.distributed.seeding import Stream, generator
from medcl3d.downstream.crop_dataset import Example
from medcl3d.downstream.targets import once_per_store
from medcl3d.downstream.tasks import TASKS
from medcl3d.downstream.tasks.classification import CropClassification
from medcl3d.store.store import Store

TEST_SEED = 0  # seed of the examples, independent of the seed of the run


@TASKS.register("structure_at_centre")
@dataclass(frozen=True, kw_only=True)
class StructureAtCentre(CropClassification):
    """Cross-entropy of a linear head on pooled features; the class is the structure at the centre of a crop.

    structures      number of structures: those in most labelled scans, among equals the largest
    crops_per_scan  number of crops per scan for testing and for probes, drawn uniformly over the structures
                    of a scan

    Crops are centred on voxels drawn uniformly over the structures of a scan, then over the voxels of a
    structure. Outside a scan, its own value of empty space is used.
    """

    structures: PositiveInt = 20
    crops_per_scan: PositiveInt = 60

    @once_per_store
    def _classes(self, store: Store) -> dict[int, str]:
        """Label value -> name, sorted by value.

        ConfigError if the labels of the store have fewer than two structures.
        """
        values = max(store.label_names, default=0) + 1
        counts = [
            np.bincount(store.read_label(i).ravel(), minlength=values)[:values]
            for i in range(len(store))
            if store.has_label(i)
        ]
        table = np.array(counts).reshape(-1, values)
        order = sorted(range(1, values), key=lambda v: (-(table[:, v] > 0).sum(), -table[:, v].sum()))
        chosen = sorted(v for v in order[: self.structures] if v in store.label_names and table[:, v].any())
        if len(chosen) < 2:
            problem = f"the labels of {store.root} have {len(chosen)} structures, at least two are needed"
            remedy = "prepare scans with their label maps"
            raise ConfigError("task.structure_at_centre", None, problem, remedy)
        return {value: store.label_names[value] for value in chosen}

    def class_names(self, store: Store) -> tuple[str, ...]:
        """The names of the structures, in the order of their label values."""
        return tuple(self._classes(store).values())

    def has_target(self, store: Store, scan: int) -> bool:
        """Whether the scan has a label map with one of the structures."""
        return store.has_label(scan) and any(len(voxels) for voxels in self.voxels_of(store, scan))

    def classes_in(self, store: Store, scan: int) -> list[str]:
        """The structures in a labelled scan."""
        return [
            name
            for name, voxels in zip(self.class_names(store), self.voxels_of(store, scan), strict=True)
            if len(voxels)
        ]

    @once_per_store
    def voxels_of(self, store: Store, scan: int) -> list[np.ndarray]:
        """Flat voxel indices of each structure in a scan; read once per process."""
        labels = store.read_label(scan).ravel()
        return [np.flatnonzero(labels == value).astype(np.int32) for value in self._classes(store)]

    def draw(self, store: Store, scan: int, patch_size: Triple, rng: np.random.Generator) -> tuple[Box, int]:
        """A crop centred on a random voxel of a random structure, and the index of the structure."""
        voxels = self.voxels_of(store, scan)
        present = [index for index, found in enumerate(voxels) if len(found)]
        target = int(rng.choice(present))
        centre = np.array(np.unravel_index(rng.choice(voxels[target]), store.collection.shapes[scan]))
        return Box(triple(centre - np.array(patch_size) // 2), patch_size), target

    def examples(self, store: Store, scans: Sequence[int], patch_size: Triple) -> list[Example]:
        """`crops_per_scan` crops of each scan."""
        found = []
        for scan in scans:
            rng = generator(TEST_SEED, 0, scan, Stream.SAMPLE)
            drawn = [self.draw(store, scan, patch_size, rng) for _ in range(self.crops_per_scan)]
            found += [Example(scan, (box,), target) for box, target in drawn]
        return found

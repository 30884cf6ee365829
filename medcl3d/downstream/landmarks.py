"""Landmark matching: distance between matched crops and corresponding structures in other patients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from pydantic.dataclasses import dataclass

from medcl3d.config.field_types import STRICT, Positive, PositiveInt
from medcl3d.core.errors import DataError
from medcl3d.core.geometry import Box, Triple, triple
from medcl3d.downstream.crop_dataset import Example
from medcl3d.downstream.dense.voxel_grid import nearest_to_centroid
from medcl3d.downstream.probes import directions, standardiser
from medcl3d.downstream.targets import Measurement, intervals_of
from medcl3d.downstream.tasks.structure_at_centre import StructureAtCentre
from medcl3d.evaluation.metrics.retrieval import TIE
from medcl3d.store.store import Store

SCANS_TO_STANDARDISE = 4
MEASURES = ("error_mm", "same_place_error_mm", "chance_error_mm")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Landmarks:
    """Match the crop at a structure's centre to crops of another test patient, and measure the error in mm.

    structures  number of structures: those in most labelled scans, among equals the largest
    stride_mm   distance between the centres of candidate crops, over the whole body
    partners    number of other test patients of the same modality that each patient is matched with

    Crops are compared by the cosine of their features, standardised on training scans of the modality. The
    centre of a structure is its voxel nearest to the centroid. Reported along with the error: the error of
    the corresponding point in body coordinates, without features, and the error of a random crop. Source:
    landmark matching as in SAM (Yan et al., TMI 2022), with crops instead of voxels.
    """

    structures: PositiveInt = 10
    stride_mm: Positive = 8.0
    partners: PositiveInt = 4

    def measure(
        self,
        features_of: Callable[[Sequence[Example]], np.ndarray],
        store: Store,
        sides: tuple[Sequence[int], Sequence[int]],
        size: Triple,
        seed: int,
    ) -> Measurement:
        """Errors in mm with intervals over patients, and one row per structure and pair of patients.

        features_of: features ``[N, F]`` of examples; sides: scans to standardise on, and test scans; size:
        voxels of a crop. DataError if no structure is in two test patients.
        """
        task, table = StructureAtCentre(structures=self.structures), store.collection.table
        names = task.class_names(store)
        patient, modality = (table[name].astype(str).to_numpy() for name in ("patient", "modality"))
        labelled = [scan for scan in sides[1] if store.has_label(scan)]
        tested = _first_of_each(labelled, patient, modality)
        scales = {}
        for name in dict.fromkeys(modality[tested].tolist()):
            known = [scan for scan in sides[0] if modality[scan] == name][:SCANS_TO_STANDARDISE]
            if not known:
                problem = f"no training scan has the modality {name!r} of test scans"
                raise DataError("landmarks", problem, "set data.modalities", field="landmarks")
            examples = [one for scan in known for one in _examples(scan, self._grid(store, scan), size)]
            scales[name] = standardiser(features_of(examples))

        def embed(scan: int, voxels: np.ndarray) -> np.ndarray:
            scale = scales[modality[scan]]
            return directions(scale.transform(features_of(_examples(scan, voxels, size))))

        centres = {scan: voxels for scan in tested if (voxels := _centres(task, store, scan))}
        grids = {scan: self._grid(store, scan) for scan in centres}
        candidates = {scan: embed(scan, grids[scan]) for scan in centres}
        cases: list[dict[str, Any]] = []
        for scan, other in self._pairs(list(centres), modality):
            both = [structure for structure in centres[scan] if structure in centres[other]]
            if not both:
                continue
            queries = np.array([centres[scan][structure] for structure in both])
            cosine = embed(scan, queries) @ candidates[other].T
            # All candidates for a collapsed encoder: its error is then that of chance.
            best = cosine >= cosine.max(1, keepdims=True) - TIE
            for structure, voxel, matches in zip(both, queries, best, strict=True):
                errors = _errors(
                    store, (scan, voxel), (other, centres[other][structure]), grids[other], matches
                )
                row = {
                    "scan": table["scan"].iloc[scan],
                    "patient": table["patient"].iloc[scan],
                    "in": table["scan"].iloc[other],
                }
                cases.append({**row, "class": names[structure], **dict(zip(MEASURES, errors, strict=True))})
        if not cases:
            problem = f"no structure of {store.root} is in two test patients of one modality"
            remedy = "use more test patients"
            raise DataError("landmarks", problem, remedy, field="landmarks")
        return intervals_of(cases, MEASURES, seed), cases

    def _pairs(self, scans: Sequence[int], modality: np.ndarray) -> Iterator[tuple[int, int]]:
        """Pair each scan with the next `partners` scans of its modality, cyclically."""
        for number, scan in enumerate(scans):
            others = [
                other
                for other in (*scans[number + 1 :], *scans[:number])
                if modality[other] == modality[scan]
            ]
            yield from ((scan, other) for other in others[: self.partners])

    def _grid(self, store: Store, scan: int) -> np.ndarray:
        """``Int[N, 3]``: voxels `stride_mm` apart, over the whole body."""
        low, high = store.collection.body_boxes[scan]
        step = np.maximum(1, np.rint(self.stride_mm / store.collection.spacings[scan])).astype(int)
        axes = [np.arange(a + min(s, b - a) // 2, b, s) for a, b, s in zip(low, high, step, strict=True)]
        return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def _errors(
    store: Store,
    query: tuple[int, np.ndarray],
    wanted: tuple[int, np.ndarray],
    grid: np.ndarray,
    matches: np.ndarray,
) -> tuple[float, float, float]:
    """Errors in mm of the match (mean over ties), the corresponding point of the body, and a random crop."""
    collection, (scan, voxel), (other, target) = store.collection, query, wanted
    target_mm = collection.world(np.array([other]), target[None])[0]
    distance = np.linalg.norm(collection.world(np.full(len(grid), other), grid) - target_mm, axis=1)
    same = np.linalg.norm(collection.corresponding_point(scan, other, voxel) - target_mm)
    return round(float(distance[matches].mean()), 3), round(float(same), 3), round(float(distance.mean()), 3)


def _examples(scan: int, voxels: np.ndarray, size: Triple) -> list[Example]:
    """A crop around each voxel."""
    return [Example(scan, (Box(triple(voxel - np.array(size) // 2), size),), 0) for voxel in voxels]


def _first_of_each(scans: Sequence[int], patient: np.ndarray, modality: np.ndarray) -> list[int]:
    """The first of these scans of each patient and modality."""
    found: dict[tuple[str, str], int] = {}
    for scan in scans:
        found.setdefault((str(patient[scan]), str(modality[scan])), scan)
    return list(found.values())


def _centres(task: StructureAtCentre, store: Store, scan: int) -> dict[int, np.ndarray]:
    """Structure -> its voxel nearest to its centroid, by distance in mm."""
    if not store.has_label(scan):
        return {}
    shape, affine = store.collection.shapes[scan], store.collection.affines[scan]
    return {
        structure: nearest_to_centroid(np.stack(np.unravel_index(flat, shape), 1), affine)
        for structure, flat in enumerate(task.voxels_of(store, scan))
        if len(flat)
    }

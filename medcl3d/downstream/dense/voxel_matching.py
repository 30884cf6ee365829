"""Voxel matching: distance in mm between the most similar voxel of another scan and the true partner."""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from dataclasses import field

import numpy as np
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from medcl3d.config.field_types import STRICT, NonNegativeInt, PositiveInt
from medcl3d.core.errors import DataError
from medcl3d.downstream.dense.context import DenseContext, FittedProbe, Row, rounded
from medcl3d.downstream.dense.controls import ENCODER, DescribedVoxels, sources_of
from medcl3d.downstream.dense.nearest_voxel import Scale, nearest
from medcl3d.downstream.dense.voxel_grid import Structures, body_of, grid_of, nearest_to_centroid
from medcl3d.store.store import Store

WITHIN_MM = (5, 10, 20)
SCANS_TO_STANDARDISE = 2  # of each modality
OFFSETS_AT_ONCE = 50_000


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VoxelMatching:
    """Match voxels between scans, without training.

    queries     number of voxels per scan that are matched in scans of the same frame, on a regular grid
    candidates  number of voxels per scan among which the match is searched, on a regular grid in the body;
                the best one is refined among all voxels within half a step of the grid
    partners    number of other test patients of the same modality that each patient is matched with, by the
                first scan of each that has a label map
    structures  number of structures whose centres are matched between patients: the largest in the label maps
                of the training patients
    controls    report features without a network too: `place`, `intensity`, `intensity_place`

    `frame/...`: test scans that share world millimetres, as CT and PET of one session; the true partner is
    the same point, so no label is needed. `people/...`: the voxel nearest to a structure's centroid, and
    the centroid of that structure in another patient. Similarity is the cosine of features, standardised on
    two training scans of each modality. Reported: the median error in mm of a pair of scans, the share of
    queries within 5, 10 and 20 mm, and the error of a random candidate (`chance_error_mm`). `place` is the
    corresponding point in body coordinates, between patients only, since it is the truth within a frame.
    Source: landmark matching as in SAM (Yan et al., TMI 2022).
    """

    queries: PositiveInt = 2_000
    candidates: PositiveInt = 16_000
    partners: NonNegativeInt = 4
    structures: PositiveInt = 10
    controls: bool = True

    def check(self, context: DenseContext) -> None:
        """DataError if no two test scans can be matched."""
        self._order(context)

    def fit(self, context: DenseContext) -> FittedProbe:
        """Standardise on training scans. DataError if a modality has no training scan."""
        store, table = context.store, context.store.collection.table
        scans = self._order(context)
        modality = table["modality"].astype(str).to_numpy()
        scales: dict[str, dict[str, Scale]] = {}
        for name in dict.fromkeys(modality[scans].tolist()):
            chosen = [scan for scan in context.training() if modality[scan] == name][:SCANS_TO_STANDARDISE]
            parts = [sources_of(store, scan, context.describe(scan), self.controls) for scan in chosen]
            if not parts:
                raise DataError(
                    f"voxel_matching: no training scan has the modality {name!r} of test scans; set "
                    "data.modalities"
                )
            grids = [
                grid_of(body_of(store, scan), store.collection.spacings[scan], self.candidates)
                for scan in chosen
            ]
            scales[name] = {
                source: Scale.of(
                    torch.cat([one[source].at(grid) for one, grid in zip(parts, grids, strict=True)]),
                    parts[0][source].parts,
                )
                for source in parts[0]
            }
        labelled = [scan for scan in context.training() if store.has_label(scan)]
        structures = Structures.largest(store, labelled, self.structures) if labelled else Structures({})
        measuring = _Measuring(self, context, modality, scales, structures)
        return FittedProbe(scans, (), measuring.measure, in_order=True)

    def _order(self, context: DenseContext) -> list[int]:
        """The test scans, those of one frame one after the other. DataError if no two can be matched."""
        found, store = context.all_tested(), context.store
        table = store.collection.table
        frame = store.collection.columns.get("frame", np.arange(len(table)))
        found = sorted(found, key=lambda scan: (min(i for i in found if frame[i] == frame[scan]), scan))
        shared = any(store.collection.share_frame(a, b) for n, a in enumerate(found) for b in found[n + 1 :])
        if not shared and not (self.partners and sum(store.has_label(scan) for scan in found) > 1):
            raise DataError(
                f"voxel_matching: no two test scans of {store.root} share a frame or have label maps; give "
                "the manifest a column frame, or prepare scans with label maps"
            )
        return found


@plain_dataclass(frozen=True)
class _Queries:
    """Voxels of one scan to be matched in others: voxels ``Int[N, 3]``, world mm, unit features by source."""

    scan: int
    voxels: np.ndarray
    world: np.ndarray
    features: dict[str, Tensor]
    structures: np.ndarray


@plain_dataclass
class _Measuring:
    """The results of pairs of test scans: each scan is matched with those before it."""

    probe: VoxelMatching
    context: DenseContext
    modality: np.ndarray
    scales: dict[str, dict[str, Scale]]
    structures: Structures
    of_frames: list[_Queries] = field(default_factory=list)
    of_people: list[_Queries] = field(default_factory=list)

    def measure(self, scan: int, features: DescribedVoxels) -> list[Row]:
        """Match the queries of earlier scans in this one, and keep its own.

        One row per pair of scans of a frame, and one per structure and pair of patients.
        """
        store, collection = self.context.store, self.context.store.collection
        described = sources_of(store, scan, features, self.probe.controls)
        grid = grid_of(body_of(store, scan), collection.spacings[scan], self.probe.candidates)
        target = _Target(store, scan, grid, described, self.scales[self.modality[scan]])
        self.of_frames = [one for one in self.of_frames if collection.share_frame(one.scan, scan)]
        rows = [row for one in self.of_frames for row in self._match_in_frame(one, target)]
        own = grid_of(body_of(store, scan), collection.spacings[scan], self.probe.queries)
        self.of_frames.append(target.queries(own, np.zeros(len(own), dtype=int)))
        centres, patient = self._centres(scan), collection.table["patient"].astype(str).to_numpy()
        before = [one for one in self.of_people if self.modality[one.scan] == self.modality[scan]]
        if not len(centres) or any(patient[one.scan] == patient[scan] for one in before):
            return rows
        for one in before[-self.probe.partners :] if self.probe.partners else ():
            rows += self._match_structures(one, target, centres)
        known = np.array(list(centres))
        self.of_people.append(target.queries(np.array(list(centres.values())), known))
        return rows

    def _match_in_frame(self, one: _Queries, target: _Target) -> list[Row]:
        collection = self.context.store.collection
        affine = np.linalg.inv(collection.affines[target.scan])
        voxels = one.world @ affine[:3, :3].T + affine[:3, 3]
        inside = ((voxels > -0.5) & (voxels < np.array(target.features[ENCODER].shape) - 0.5)).all(1)
        if not inside.any():
            return []
        row: Row = {}
        for source, features in one.features.items():
            label = f"frame/{source}/" if source else "frame/"
            error = np.linalg.norm(
                target.match(source, features[torch.from_numpy(inside)]) - one.world[inside], axis=1
            )
            row[f"{label}error_mm"] = rounded(float(np.median(error)))
            row |= {f"{label}within_{mm}mm": rounded(float((error <= mm).mean())) for mm in WITHIN_MM}
        row["frame/chance_error_mm"] = rounded(target.chance(one.world[inside]))
        return [{**self._ids(one.scan, target.scan), **row}]

    def _match_structures(self, one: _Queries, target: _Target, centres: dict[int, np.ndarray]) -> list[Row]:
        collection = self.context.store.collection
        names = list(self.structures.names.values())
        both = [number for number, value in enumerate(one.structures) if value in centres]
        if not both:
            return []
        wanted = np.array([centres[one.structures[number]] for number in both])
        truth = collection.world(np.full(len(both), target.scan), wanted)
        places = {
            source: target.match(source, features[torch.tensor(both)])
            for source, features in one.features.items()
        }
        if self.probe.controls:
            places["place"] = np.array(
                [collection.corresponding_point(one.scan, target.scan, one.voxels[number]) for number in both]
            )
        errors = {source: np.linalg.norm(found - truth, axis=1) for source, found in places.items()}
        rows = []
        for index, number in enumerate(both):
            row: Row = {}
            for source, error in errors.items():
                label = f"people/{source}/" if source else "people/"
                row[f"{label}error_mm"] = rounded(float(error[index]))
                row |= {f"{label}within_{mm}mm": float(error[index] <= mm) for mm in WITHIN_MM}
            row["people/chance_error_mm"] = rounded(target.chance(truth[index : index + 1]))
            name = names[one.structures[number] - 1]
            rows.append({**self._ids(one.scan, target.scan), "class": name, **row})
        return rows

    def _ids(self, scan: int, other: int) -> Row:
        return {**self.context.ids(scan), "in": self.context.ids(other)["scan"]}

    def _centres(self, scan: int) -> dict[int, np.ndarray]:
        """Structure -> its voxel nearest to its centroid, in mm; empty without a label map."""
        store = self.context.store
        if not len(self.structures) or not store.has_label(scan):
            return {}
        classes, affine = self.structures.of(store, scan), store.collection.affines[scan]
        present = (int(value) for value in np.unique(classes[classes > 0]))
        return {value: nearest_to_centroid(np.argwhere(classes == value), affine) for value in present}


class _Target:
    """A scan in which voxels are searched."""

    def __init__(
        self,
        store: Store,
        scan: int,
        grid: np.ndarray,
        features: dict[str, DescribedVoxels],
        scales: dict[str, Scale],
    ):
        self.store, self.scan, self.grid, self.features, self.scales = store, scan, grid, features, scales
        self.directions = {name: scales[name].directions(one.at(grid)) for name, one in features.items()}
        self.offsets = _half_a_step(grid)

    def queries(self, voxels: np.ndarray, structures: np.ndarray) -> _Queries:
        """Voxels of this scan as queries in others."""
        features = {name: self.scales[name].directions(one.at(voxels)) for name, one in self.features.items()}
        return _Queries(self.scan, voxels, self._world(voxels), features, structures)

    def match(self, source: str, queries: Tensor) -> np.ndarray:
        """``Float64[N, 3]``: world mm of the most similar voxel of each query ``[N, F]``."""
        best = self.grid[nearest(queries, self.directions[source])[0].index[:, 0]]
        shape = np.array(self.features[source].shape)
        at_once = max(1, OFFSETS_AT_ONCE // len(self.offsets))
        found = []
        for start in range(0, len(best), at_once):
            around = best[start : start + at_once, None] + self.offsets
            voxels = np.clip(around, 0, shape - 1).reshape(-1, 3)
            described = self.scales[source].directions(self.features[source].at(voxels))
            described = described.reshape(around.shape[0], around.shape[1], -1)
            cosine = torch.einsum("nof,nf->no", described, queries[start : start + at_once])
            chosen = cosine.argmax(1).numpy()
            found.append(voxels.reshape(around.shape)[np.arange(len(chosen)), chosen])
        return self._world(np.concatenate(found))

    def chance(self, world: np.ndarray) -> float:
        """The median over points of the mean distance in mm to a candidate."""
        candidates = self._world(self.grid)
        return float(np.median([np.linalg.norm(candidates - point, axis=1).mean() for point in world]))

    def _world(self, voxels: np.ndarray) -> np.ndarray:
        return self.store.collection.world(np.full(len(voxels), self.scan), voxels)


def _half_a_step(grid: np.ndarray) -> np.ndarray:
    """``Int[M, 3]``: offsets of the voxels within half a step of a grid, rounded up; the first is 0."""
    reach = [int(np.diff(np.unique(axis)).max(initial=1)) // 2 for axis in grid.T]
    offsets = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), -1).reshape(-1, 3)
    return offsets[np.argsort(np.abs(offsets).sum(1), kind="stable")]

"""Label propagation: a voxel of a test scan takes the label of the most similar voxel of support scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass

import numpy as np
import torch
from pydantic.dataclasses import dataclass
from scipy.spatial import cKDTree
from torch import Tensor

from medcl3d.config.field_types import STRICT, Positive, PositiveInt
from medcl3d.downstream.dense.context import DenseContext, FittedProbe, Row, rounded
from medcl3d.downstream.dense.controls import DescribedVoxels, place_mm, sources_of
from medcl3d.downstream.dense.nearest_voxel import Near, Scale, nearest
from medcl3d.downstream.dense.voxel_grid import Structures, body_of, grid_of
from medcl3d.downstream.dense.voxel_probe import dice_of_voxels

NEAR = "near"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LabelPropagation:
    """Copy labels from support scans to test scans by the similarity of voxels, without training.

    supports    number of labelled training patients whose scans are the support
    structures  number of structures: the largest in the label maps of the training patients
    radius_mm   `near/...`: only voxels within this distance of the same place in body coordinates
    queries, candidates  number of voxels per test scan and per support scan, on regular grids in the body
    controls    report features without a network too: `place`, `intensity`, `intensity_place`

    Similarity is the cosine of features, standardised on the support. Reported over the queries in
    structures: accuracy, and the distance in mm from the match to the nearest voxel of the query's structure
    in its scan, 0 if the label is right (`error_mm`); over all queries: the macro Dice. Source: one-shot
    label transfer by the nearest feature, as in SAM (Yan et al., TMI 2022) for landmarks.
    """

    supports: PositiveInt = 1
    structures: PositiveInt = 40
    radius_mm: Positive = 20.0
    queries: PositiveInt = 6_000
    candidates: PositiveInt = 16_000
    controls: bool = True

    def check(self, context: DenseContext) -> None:
        """ConfigError, DataError: too few labelled scans."""
        context.labelled(self.supports)
        context.tested()

    def fit(self, context: DenseContext) -> FittedProbe:
        """Describe the support scans."""
        structures = Structures.largest(context.store, context.labelled(None)[0], self.structures)
        scans, patients = context.labelled(self.supports)
        support = [self._support(context, structures, scan) for scan in scans]
        scales = {
            name: Scale.of(torch.cat([one.features[name] for one in support]), parts)
            for name, parts in support[0].parts.items()
        }
        directions = [
            {name: scales[name].directions(features) for name, features in one.features.items()}
            for one in support
        ]
        measuring = _Measuring(self, context, structures, support, scales, directions)
        return FittedProbe(context.tested(), patients, measuring.measure)

    def _support(self, context: DenseContext, structures: Structures, scan: int) -> _Support:
        store = context.store
        classes = structures.of(store, scan)
        grid = grid_of(body_of(store, scan), store.collection.spacings[scan], self.candidates)
        features = sources_of(store, scan, context.describe(scan), self.controls)
        world = store.collection.world(np.full(len(grid), scan), grid)
        trees: dict[int, cKDTree] = {}
        for value in np.unique(classes[classes > 0]):
            voxels = np.argwhere(classes == value)
            trees[int(value)] = cKDTree(store.collection.world(np.full(len(voxels), scan), voxels))
        described = {name: one.at(grid) for name, one in features.items()}
        parts = {name: one.parts for name, one in features.items()}
        return _Support(
            described,
            parts,
            classes[tuple(grid.T)].astype(np.int64),
            place_mm(store, scan, grid),
            world,
            trees,
        )


@plain_dataclass(frozen=True)
class _Support:
    """The candidates of one support scan, and its structures as trees of points in world mm."""

    features: dict[str, Tensor]
    parts: dict[str, tuple[int, ...]]
    classes: np.ndarray
    places: np.ndarray
    world: np.ndarray
    trees: dict[int, cKDTree]


@plain_dataclass(frozen=True)
class _Measuring:
    """A fitted probe."""

    probe: LabelPropagation
    context: DenseContext
    structures: Structures
    support: list[_Support]
    scales: dict[str, Scale]
    directions: list[dict[str, Tensor]]

    def measure(self, scan: int, features: DescribedVoxels) -> list[Row]:
        """Propagate labels to one test scan, from the whole support and from near the same place; one row."""
        store = self.context.store
        truth = self.structures.of(store, scan)
        spacing = store.collection.spacings[scan]
        grid = grid_of(body_of(store, scan) | (truth > 0), spacing, self.probe.queries)
        classes, place = truth[tuple(grid.T)].astype(np.int64), place_mm(store, scan, grid)
        row: Row = {}
        for name, one in sources_of(store, scan, features, self.probe.controls).items():
            queries = self.scales[name].directions(one.at(grid))
            matches = [
                nearest(queries, part[name], 1, Near(place, of.places, self.probe.radius_mm))
                for part, of in zip(self.directions, self.support, strict=True)
            ]
            label = f"{name}/" if name else ""
            for which, prefix in ((0, label), (1, f"{label}{NEAR}/")):
                chosen = [pair[which] for pair in matches]
                cosine = np.stack([one.cosine[:, 0] for one in chosen if one is not None])
                index = np.stack([one.index[:, 0] for one in chosen if one is not None])
                row |= self._measures(prefix, classes, cosine, index)
        if self.probe.controls:
            found = [cKDTree(one.places).query(place) for one in self.support]
            distance, number = (np.stack([one[i] for one in found]) for i in range(2))
            row |= self._measures("place/", classes, -distance, number)
        return [{**self.context.ids(scan), **row}]

    def _measures(self, prefix: str, classes: np.ndarray, similarity: np.ndarray, index: np.ndarray) -> Row:
        """Measures of matches with similarity and index ``[S, N]`` in each support scan."""
        best = similarity.argmax(0)
        predicted, error = np.zeros_like(classes), np.full(len(classes), np.nan)
        for number, one in enumerate(self.support):
            here = best == number
            match = index[number, here]
            predicted[here] = one.classes[match]
            error[here] = _errors(one, classes[here], match)
        inside, shared = classes > 0, set.intersection(*(set(one.trees) for one in self.support))
        dice = dice_of_voxels(predicted, classes, 1 + len(self.structures))
        known = error[np.isin(classes, list(shared))]  # the same queries, whatever they match
        return {
            f"{prefix}accuracy": rounded(float((predicted == classes)[inside].mean())),
            f"{prefix}dice": rounded(float(np.nanmean(dice))),
            f"{prefix}error_mm": rounded(float(known.mean()) if len(known) else np.nan),
        }


def _errors(support: _Support, classes: np.ndarray, match: Sequence[int] | np.ndarray) -> np.ndarray:
    """``Float64[N]``: mm from each match to its query's structure; NaN for background and absent ones."""
    found = np.full(len(classes), np.nan)
    for value, tree in support.trees.items():
        chosen = np.flatnonzero(classes == value)
        if len(chosen):
            found[chosen] = tree.query(support.world[np.asarray(match)[chosen]])[0]
    return found

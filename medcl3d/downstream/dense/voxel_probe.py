"""Voxel probe: segmentation of whole scans by classifiers of frozen voxel features, from a few label maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from scipy.spatial import cKDTree
from torch import Tensor

from medcl3d.config.field_types import STRICT, Positive, PositiveInt
from medcl3d.core.errors import ConfigError
from medcl3d.distributed.seeding import Stream, generator
from medcl3d.downstream.dense.context import DenseContext, FittedProbe, Row, rounded
from medcl3d.downstream.dense.controls import ENCODER, DescribedVoxels, place_mm, sources_of
from medcl3d.downstream.dense.nearest_voxel import Scale, nearest
from medcl3d.downstream.dense.voxel_grid import Structures, VoxelSample, body_of, grid_of, stratified
from medcl3d.downstream.dense.voxel_heads import (
    Head,
    LabelledVoxels,
    fit_linear,
    fit_nonlinear,
    fold_of_blocks,
)
from medcl3d.evaluation.metrics.segmentation import overlap_of
from medcl3d.evaluation.statistics.bootstrap import mean_of_defined

HeadName = Literal["linear", "nonlinear"]
NUM_FOLDS = 2
KNN, GRID = "knn", "grid"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VoxelProbe:
    """Classify every voxel of the test scans from its features, trained on voxels of labelled training scans.

    labelled           numbers of labelled patients, each a probe of its own (default: `num_labelled`); with
                       several, `dice` is the mean over them and `1/dice`, `4/dice` are those of each; a
                       structure that a scan lacks counts in the mean for the probes that predict it
    structures         number of structures: the largest in the label maps of the training patients
    voxels_per_scan    number of voxels per labelled scan that heads are fitted on: half in structures, equal
                       numbers in each, half in background, with weights that restore their frequencies
    heads              linear (multinomial logistic regression), nonlinear (one hidden layer); the first is
                       reported as `dice`, the others under their names
    inverse_strengths  inverse strengths of the L2 penalty (scikit-learn's C) of the linear head; the best in
                       two-fold cross-validation over labelled patients is used; over scans if one patient is
                       labelled, and over alternating blocks of 32 mm if one scan is
    neighbours         number of nearest neighbours, by the cosine of standardised features
    queries, candidates  number of voxels per test scan and per labelled scan that nearest neighbours use, on
                       regular grids inside the body
    controls           report features without a network too: `place`, `intensity`, `intensity_place`
    features_place     report the features and the place together too, which shows what they add to the place

    Heads are measured on whole scans, by Dice and surface Dice at 2 mm; nearest neighbours and controls by
    the Dice of the queries, as is the first head in `grid/dice`, to be compared with them. A missed structure
    has Dice 0; one that is absent in truth and prediction is left out. Source: the voxel-level linear probe
    of vox2vec (Goncharov et al., MICCAI 2023).
    """

    labelled: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    structures: PositiveInt = 40
    voxels_per_scan: PositiveInt = 10_000
    heads: Annotated[tuple[HeadName, ...], Field(min_length=1)] = ("linear",)
    inverse_strengths: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.1, 1.0, 10.0)
    neighbours: PositiveInt = 1
    queries: PositiveInt = 6_000
    candidates: PositiveInt = 16_000
    controls: bool = True
    features_place: bool = False

    def __post_init__(self) -> None:
        for name, values in (("labelled", self.labelled or ()), ("heads", self.heads)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} = {list(values)}: a value is repeated; list each once")

    def check(self, context: DenseContext) -> None:
        """ConfigError, DataError: too few labelled scans, or two numbers of labelled patients."""
        if self.labelled is not None and context.num_labelled is not None:
            raise ConfigError(
                f"voxel_probe.labelled = {list(self.labelled)}: num_labelled = {context.num_labelled} is set "
                "too; remove one of them"
            )
        for count in self.labelled or (context.num_labelled,):
            context.labelled(count)
        context.tested()

    def fit(self, context: DenseContext) -> FittedProbe:
        """Fit all heads on the labelled scans."""
        counts = self.labelled or (context.num_labelled,)
        structures = Structures.largest(context.store, context.labelled(None)[0], self.structures)
        sides = {count: context.labelled(count) for count in counts}
        known: dict[int, _Known] = {}
        for scan in dict.fromkeys(scan for scans, _ in sides.values() for scan in scans):
            known[scan] = self._known(context, structures, scan)
        fitted = [
            self._fitted(count, [known[scan] for scan in scans], structures, context.seed)
            for count, (scans, _) in sides.items()
        ]
        patients = max((patients for _, patients in sides.values()), key=len)
        return FittedProbe(context.tested(), patients, _Measuring(self, context, structures, fitted).measure)

    def _known(self, context: DenseContext, structures: Structures, scan: int) -> _Known:
        """The sampled voxels and candidates of a labelled scan, described once for all probes."""
        store = context.store
        classes = structures.of(store, scan)
        spacing = store.collection.spacings[scan]
        rng = generator(context.seed, 0, scan, Stream.SAMPLE)
        sample = stratified(classes, spacing, self.voxels_per_scan, rng)
        grid = grid_of(body_of(store, scan), spacing, self.candidates)
        sources = sources_of(
            store, scan, context.describe(scan), self.controls, place=True, features_place=self.features_place
        )
        return _Known(
            sample,
            {name: one.at(sample.voxels) for name, one in sources.items()},
            classes[tuple(grid.T)].astype(np.int64),
            {name: (one.at(grid), one.parts) for name, one in sources.items() if name != "place"},
            place_mm(store, scan, grid),
            fold_of_blocks(place_mm(store, scan, sample.voxels)),
            context.ids(scan)["patient"],
        )

    def _fitted(
        self, count: int | None, known: Sequence[_Known], structures: Structures, seed: int
    ) -> _Fitted:
        num_classes = 1 + len(structures)
        patients = list(dict.fromkeys(one.patient for one in known))
        owners = [patients.index(one.patient) for one in known]
        owners = owners if len(patients) > 1 else list(range(len(known)))  # scans of the only patient
        folds = [
            np.full(len(one.sample.classes), owner % NUM_FOLDS) if len(known) > 1 else one.blocks
            for one, owner in zip(known, owners, strict=True)
        ]
        heads: dict[tuple[str, str], Head] = {}
        for source in known[0].features:
            voxels = LabelledVoxels(
                torch.cat([one.features[source] for one in known]),
                torch.from_numpy(np.concatenate([one.sample.classes for one in known])),
                torch.from_numpy(np.concatenate([one.sample.weights for one in known])).float(),
                np.concatenate(folds),
            )
            for name in self.heads if source == ENCODER else ("linear",):
                heads[source, name] = (
                    fit_linear(voxels, num_classes, self.inverse_strengths)
                    if name == "linear"
                    else fit_nonlinear(voxels, num_classes, seed)
                )
        candidates = {}
        for source in known[0].candidates:
            parts = [one.candidates[source][0] for one in known]
            scale = Scale.of(torch.cat(parts), known[0].candidates[source][1])
            candidates[source] = scale, torch.cat([scale.directions(part) for part in parts])
        places = cKDTree(np.concatenate([one.places for one in known])) if self.controls else None
        classes = np.concatenate([one.classes for one in known])
        return _Fitted(count, heads, candidates, places, classes)


@plain_dataclass(frozen=True)
class _Known:
    """Voxels of one labelled scan.

    sample, features    of the heads: voxels, and their features by source
    classes, candidates, places  of the grid: classes, features by source with the number of features of
                        each part, body coordinates in mm
    blocks              fold of each sampled voxel if no other scan is labelled
    """

    sample: VoxelSample
    features: dict[str, Tensor]
    classes: np.ndarray
    candidates: dict[str, tuple[Tensor, tuple[int, ...]]]
    places: np.ndarray
    blocks: np.ndarray
    patient: str


@plain_dataclass(frozen=True)
class _Fitted:
    """All classifiers for one number of labelled patients."""

    count: int | None
    heads: dict[tuple[str, str], Head]
    candidates: dict[str, tuple[Scale, Tensor]]
    places: cKDTree | None
    classes: np.ndarray


@plain_dataclass(frozen=True)
class _Measuring:
    """A fitted probe."""

    probe: VoxelProbe
    context: DenseContext
    structures: Structures
    fitted: list[_Fitted]

    def measure(self, scan: int, features: DescribedVoxels) -> list[Row]:
        """Segment one test scan with every classifier; one row per structure."""
        probe, context, store = self.probe, self.context, self.context.store
        truth = self.structures.of(store, scan)
        grid = grid_of(body_of(store, scan) | (truth > 0), store.collection.spacings[scan], probe.queries)
        sources = sources_of(
            store, scan, features, probe.controls, place=True, features_place=probe.features_place
        )
        described = {name: one.at(grid) for name, one in sources.items()}
        place = place_mm(store, scan, grid)
        columns: dict[str, np.ndarray] = {}
        for one in self.fitted:
            prefix = f"{one.count}/" if len(self.fitted) > 1 else ""
            for name in probe.heads:
                label = prefix if name == probe.heads[0] else f"{prefix}{name}/"
                predicted = one.heads[ENCODER, name].predict(features)
                columns |= {f"{label}{k}": v for k, v in self._whole(scan, predicted, truth).items()}
            for label, classes in self._on_grid(one, described, place).items():
                dice = dice_of_voxels(classes, truth[tuple(grid.T)], 1 + len(self.structures))
                columns[f"{prefix}{label}/dice"] = dice
        if len(self.fitted) > 1:
            columns = {**_means(columns, [f"{one.count}/" for one in self.fitted]), **columns}
        return [
            {
                **context.ids(scan),
                "class": structure,
                **{key: rounded(value[number]) for key, value in columns.items()},
            }
            for number, structure in enumerate(self.structures.names.values())
        ]

    def _whole(self, scan: int, predicted: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
        """Dice and surface Dice of every structure."""
        to_mm = self.context.store.collection.affines[scan, :3, :3]
        found = [overlap_of(predicted == k, truth == k, to_mm) for k in range(1, 1 + len(self.structures))]
        return {name: np.array([getattr(one, name) for one in found]) for name in ("dice", "nsd_2mm")}

    def _on_grid(
        self, one: _Fitted, described: dict[str, Tensor], place: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Classes of the queries by nearest neighbours, the first head, and the controls' linear heads."""
        found: dict[str, np.ndarray] = {}
        k = min(self.probe.neighbours, len(one.classes))
        for source, features in described.items():
            label = f"{source}/" if source else ""
            head = one.heads[source, "linear" if source else self.probe.heads[0]]
            found[source or GRID] = head.scores(features).argmax(1).numpy()
            if source in one.candidates:
                scale, candidates = one.candidates[source]
                index = nearest(scale.directions(features), candidates, k)[0].index
            else:
                assert one.places is not None
                index = one.places.query(place, k=list(range(1, k + 1)))[1]
            found[f"{label}{KNN}"] = _majority(one.classes[index], 1 + len(self.structures))
        return found


def dice_of_voxels(predicted: np.ndarray, truth: np.ndarray, num_classes: int) -> np.ndarray:
    """``Float64[K - 1]``: the Dice of every structure over voxels ``[N]``; NaN if absent in both."""
    right, found, true = (
        np.bincount(classes, minlength=num_classes)[1:].astype(np.float64)
        for classes in (truth[truth == predicted], predicted, truth)
    )
    total = found + true
    dice: np.ndarray = np.divide(2 * right, total, out=np.full(len(total), np.nan), where=total > 0)
    return dice


def _majority(classes: np.ndarray, num_classes: int) -> np.ndarray:
    """``Int[N]``: the most frequent class among neighbours ``[N, k]``, among equals that of the nearest."""
    best: np.ndarray
    if classes.shape[1] == 1:
        best = classes[:, 0]
        return best
    rank = 1 - np.arange(classes.shape[1]) / (2 * classes.shape[1] ** 2)  # ties: the nearer neighbours
    votes = np.zeros((len(classes), num_classes))
    for neighbour in range(classes.shape[1]):
        votes[np.arange(len(classes)), classes[:, neighbour]] += rank[neighbour]
    best = votes.argmax(1)
    return best


def _means(columns: dict[str, np.ndarray], prefixes: Sequence[str]) -> dict[str, np.ndarray]:
    """The mean over the numbers of labelled patients of every column, where a value is defined."""
    names = [name.removeprefix(prefixes[0]) for name in columns if name.startswith(prefixes[0])]
    return {name: mean_of_defined([columns[f"{prefix}{name}"] for prefix in prefixes]) for name in names}

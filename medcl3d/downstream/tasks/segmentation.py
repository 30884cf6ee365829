"""Segmentation: one class per voxel, evaluated by Dice and surface distance on whole scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from medcl3d.config.field_types import Fraction, PositiveInt
from medcl3d.core.embeddings import Loss
from medcl3d.core.errors import ConfigError
from medcl3d.core.geometry import Triple
from medcl3d.distributed.collectives import all_mean, gather, of_all_ranks, own_part, rank
from medcl3d.downstream.case_pictures import picture_of_cases
from medcl3d.downstream.heads import Segmenter
from medcl3d.downstream.patch_dataset import PatchBatch, PatchDataset, class_indices
from medcl3d.downstream.sliding_window import mean_of_flips, probabilities_of, sliding_window
from medcl3d.downstream.targets import case_rows
from medcl3d.downstream.task import Evaluation, not_finite
from medcl3d.downstream.tasks import TASKS
from medcl3d.encoders.network import Network
from medcl3d.evaluation.metrics.segmentation import overlap_of
from medcl3d.evaluation.statistics.over_patients import summary
from medcl3d.io.progress import track
from medcl3d.sampling.plan import Plan
from medcl3d.store.store import Store
from medcl3d.views import ViewRecipe

MEASURES = ("dice", "hd95_mm", "nsd_2mm", "volume_error_ml")
SMOOTH = 1e-5  # makes the Dice of a class that is absent in truth and prediction 1


@TASKS.register("segmentation")
@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """Cross-entropy of all classes plus Dice of the foreground classes, with foreground oversampling.

    classes              label values to segment, all others are background (default: all of the store but 0)
    foreground_fraction  fraction of patches centred on a foreground voxel, classes balanced
    overlap              overlap of neighbouring windows in the prediction of a whole scan
    windows              number of windows predicted at once
    test_time_flips      axes (right, front, head) along which scans are also mirrored in prediction;
                         probabilities are averaged over all combinations, which takes 2, 4 or 8 times as long
                         for one, two or three axes

    The default mirrors no axis. Mirroring exchanges left and right. If `views` does not mirror in training,
    the network relies on the position of organs and has never seen a mirrored body. Choose only axes that
    `views` mirrors in training, and none that separates classes, such as left and right or anterior and
    posterior parts.

    Dice excludes background, since a large background would hide a missed structure. It is summed over the
    batch, since it is undefined for a patch without a structure. Source: Isensee et al. 2021, nnU-Net.
    """

    classes: tuple[PositiveInt, ...] | None = None
    foreground_fraction: Fraction = 0.5
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    windows: PositiveInt = 4
    test_time_flips: tuple[bool, bool, bool] = (False, False, False)
    decodes: ClassVar[bool] = True

    def class_names(self, store: Store) -> dict[int, str]:
        """Label value -> name of the segmented classes, sorted.

        ConfigError if the store lacks one, or has none.
        """
        return self.chosen(store.label_names, store.root)

    def chosen(self, label_names: Mapping[int, str], where: Path) -> dict[int, str]:
        """As `class_names`, from the label values of a collection.

        `where` is their source, for the message.
        """
        known = {value: name for value, name in sorted(label_names.items()) if value != 0}
        wanted = tuple(known) if self.classes is None else tuple(sorted(set(self.classes)))
        missing = [value for value in wanted if value not in known]
        if missing or not wanted:
            available = ", ".join(f"{value} ({name})" for value, name in known.items()) or "none"
            problem, remedy = f"not among the label values of {where}", f"available: {available}"
            raise ConfigError("classes", missing or list(wanted), problem, remedy, owner="task.segmentation")
        return {value: known[value] for value in wanted}

    def has_target(self, store: Store, scan: int) -> bool:
        """Whether the scan has a label map."""
        return store.has_label(scan)

    def classes_in(self, store: Store, scan: int) -> list[str]:
        """The classes in a labelled scan."""
        present = set(np.unique(store.read_label(scan)).tolist())
        return [name for value, name in self.class_names(store).items() if value in present]

    def stratum(self, store: Store, scan: int) -> int:
        """0: no strata."""
        return 0

    def model(self, network: Network, store: Store) -> Segmenter:
        """The network with a 1x1x1 head, background as class 0."""
        return Segmenter(network, 1 + len(self.class_names(store)))

    def dataset(
        self,
        store: Store,
        plan: Plan,
        patch_size: Triple,
        recipe: ViewRecipe,
        steps: int,
        rank: int,
        world_size: int,
    ) -> PatchDataset:
        """Patches of the scans of the plan."""
        classes, fraction = tuple(self.class_names(store)), self.foreground_fraction
        return PatchDataset(store, plan, classes, patch_size, fraction, recipe, steps, rank, world_size)

    def loss(self, model: nn.Module, batch: PatchBatch, recipe: ViewRecipe) -> Loss:
        """Dice and cross-entropy of the patches of one rank, augmented if there is a recipe."""
        voxels, labels = augmented(batch, recipe)
        return dice_and_cross_entropy(model(voxels), labels)

    def evaluate(
        self,
        model: nn.Module,
        store: Store,
        scans: Sequence[int],
        patch_size: Triple,
        device: torch.device,
        dtype: torch.dtype | None,
        seed: int,
    ) -> Evaluation:
        """Overlap and surface distance of every scan and class on the grid of the store, and their means.

        All ranks segment a part of the scans; rank 0 has the pictures.
        """
        names = self.class_names(store)
        own: list[list[dict[str, Any]]] = []
        for scan in track(own_part(scans), "test scans"):
            predicted = self.segment(model, store, scan, patch_size, device, dtype)
            own.append(cases_of(store, scan, predicted, names))
        cases = [case for of_scan in of_all_ranks(own) for case in of_scan]
        metrics = summary(cases, MEASURES, seed)
        if rank() != 0:
            return Evaluation(metrics, cases, {})

        def both(scan: int) -> tuple[np.ndarray, np.ndarray]:
            truth = class_indices(store.read_label(scan), tuple(names))
            return truth, self.segment(model, store, scan, patch_size, device, dtype)

        return Evaluation(metrics, cases, {"same_cases": picture_of_cases(store, scans, cases, both)})

    def segment(
        self,
        model: nn.Module,
        store: Store,
        scan: int,
        patch_size: Triple,
        device: torch.device,
        dtype: torch.dtype | None,
    ) -> np.ndarray:
        """Class indices ``Int16[D, H, W]`` of a scan on the store's grid."""
        volume, fill = torch.from_numpy(store.read_volume(scan)), store.scans[scan]["normalisation"]["fill"]
        found = self.probabilities(model, volume, fill, patch_size, device, dtype)
        return found.argmax(0).to(torch.int16).cpu().numpy()

    @torch.no_grad()
    def probabilities(
        self,
        model: nn.Module,
        volume: Tensor,
        fill: Sequence[float],
        patch_size: Triple,
        device: torch.device,
        dtype: torch.dtype | None,
    ) -> Tensor:
        """``Float32[K, D, H, W]`` of a prepared volume ``[C, D, H, W]``, background first.

        `fill` as in `sliding_window`. DataError if some are not finite: they would count as background.
        """
        model.eval()
        predict = mean_of_flips(probabilities_of(model, device, dtype), self.test_time_flips)
        found = sliding_window(
            predict, volume, patch_size, fill=fill, overlap=self.overlap, windows=self.windows, device=device
        )
        if not bool(found.isfinite().all()):
            raise not_finite()
        return found


def augmented(batch: PatchBatch, recipe: ViewRecipe | None) -> tuple[Tensor, Tensor]:
    """Augmented voxels, in float32 even under autocast, and class indices with the same spatial transform."""
    if recipe is None:
        return batch.voxels, batch.labels
    with torch.no_grad(), torch.autocast(batch.voxels.device.type, enabled=False):
        view = recipe.apply(batch.voxels, batch.parameters, batch.spacing_mm, batch.labels)
    assert view.labels is not None
    return view.voxels, view.labels


def dice_and_cross_entropy(logits: Tensor, labels: Tensor) -> Loss:
    """Cross-entropy plus 1 - Dice of the foreground; labels: class indices ``[N, D, H, W]``."""
    with torch.autocast(logits.device.type, enabled=False):
        scores, target = logits.float(), labels.long()
        dice, cross_entropy = dice_loss(scores, target), F.cross_entropy(scores, target)
    value = dice + cross_entropy
    terms = {"loss": value, "dice_loss": dice, "cross_entropy": cross_entropy}
    return Loss(value, {name: all_mean(term.detach()) for name, term in terms.items()})


def dice_loss(scores: Tensor, target: Tensor) -> Tensor:
    """1 - the mean soft Dice of the foreground classes, each summed over all patches of all ranks.

    The sums are global, since Dice is not a mean over patches, so that two ranks give the loss and gradient
    of one process. On one rank this equals MONAI's DiceLoss with softmax and batch, without background.
    Source: Milletari et al. 2016, V-Net.
    """
    probability = scores.softmax(1)[:, 1:]
    truth = F.one_hot(target, scores.shape[1]).movedim(-1, 1)[:, 1:]
    over = (0, 2, 3, 4)
    sums = torch.stack([(probability * truth).sum(over), probability.sum(over), truth.sum(over)])
    both, predicted, true = gather(sums[None]).sum(0)
    loss: Tensor = 1 - ((2 * both + SMOOTH) / (predicted + true + SMOOTH)).mean()
    return loss


def cases_of(store: Store, scan: int, predicted: np.ndarray, names: dict[int, str]) -> list[dict[str, Any]]:
    """One row per class of a scan; measures are None if the class is absent in truth and prediction."""
    (row,) = case_rows(store.collection.table.iloc[[scan]])
    truth = class_indices(store.read_label(scan), tuple(names))
    rows = []
    for index, name in enumerate(names.values(), 1):
        found = overlap_of(predicted == index, truth == index, store.collection.affines[scan, :3, :3])
        numbers = {key: None if np.isnan(getattr(found, key)) else getattr(found, key) for key in MEASURES}
        rows.append({**row, "class": name, **numbers})
    return rows

"""Multi-label classification: any number of findings per scan, evaluated by area under the ROC curve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from medcl3d.core.embeddings import Loss
from medcl3d.core.errors import ConfigError, DataError, inside
from medcl3d.distributed.collectives import all_mean
from medcl3d.downstream.crop_dataset import CropBatch, Example, targets_of
from medcl3d.downstream.crop_task import ScanTask
from medcl3d.downstream.heads import Classifier
from medcl3d.downstream.probes import Labelled, Probe
from medcl3d.downstream.targets import (
    Measurement,
    balancing,
    case_rows,
    lacking,
    numbers,
    once_per_store,
    patients_of,
)
from medcl3d.downstream.tasks import TASKS
from medcl3d.encoders.network import Network
from medcl3d.evaluation.metrics.multilabel import finding_metrics
from medcl3d.store.store import Store
from medcl3d.views import ViewRecipe


@TASKS.register("multilabel")
@dataclass(frozen=True, kw_only=True)
class Multilabel(ScanTask):
    """Binary cross-entropy of a linear head on pooled features; each finding is a column of the manifest.

    targets        the columns: 1 if a scan has the finding, 0 if not, empty if unknown
    class_weights  balanced: equal total weight of scans with and without a finding; none: equal weight per
                   scan

    An unknown finding of a scan is used neither in training nor in testing; a scan without known findings is
    left out. Training uses one random crop per scan. The probabilities of a test scan are the mean over the
    fewest crops that cover it. Labelled patients are drawn in proportion to their rarest finding, one of each
    before a second of any, so that all findings occur if the number of patients allows it. Source: Sechidis,
    Tsoumakas and Vlahavas 2011, on strata of several labels.
    """

    targets: Annotated[tuple[str, ...], Field(min_length=1)]
    class_weights: Literal["balanced", "none"] = "balanced"
    each_stratum_first: ClassVar[bool] = True

    @once_per_store
    @inside("task", "multilabel", "targets")
    def truth(self, store: Store) -> np.ndarray:
        """``Float64[scans, K]``: 0, 1, or NaN if unknown.

        ConfigError if a column is missing or has other values.
        """
        where = "task.multilabel.targets"
        missing = [name for name in self.targets if name not in store.collection.table]
        if missing:
            raise ConfigError(problem=lacking(store, "column " + ", ".join(missing)), place=where)
        duplicates = sorted({name for name in self.targets if self.targets.count(name) > 1})
        if duplicates:
            raise ConfigError(problem=f"{duplicates[0]} is listed twice", remedy="list it once", place=where)
        return np.stack([_finding(store, name, f"{where}: {name!r}") for name in self.targets], axis=1)

    def check(self, store: Store) -> None:
        """ConfigError if the store lacks the findings."""
        self.truth(store)

    def has_target(self, store: Store, scan: int) -> bool:
        """Whether any finding of the scan is known."""
        return bool(np.isfinite(self.truth(store)[scan]).any())

    def class_names(self, store: Store) -> tuple[str, ...]:
        """The findings."""
        return self.targets

    def classes_in(self, store: Store, scan: int) -> list[str]:
        """The findings of the scan."""
        return [name for name, value in zip(self.targets, self.truth(store)[scan], strict=True) if value == 1]

    def stratum(self, store: Store, scan: int) -> int:
        """The index of the rarest finding of a scan; the number of findings if it has none."""
        truth = self.truth(store)
        present = np.flatnonzero(truth[scan] == 1)
        counts = (truth == 1).sum(0)
        return int(present[counts[present].argmin()]) if len(present) else len(self.targets)

    def model(self, network: Network, store: Store) -> Classifier:
        """The network with a linear head, one score per finding."""
        self.truth(store)
        return Classifier(network, len(self.targets))

    def prepare_training(self, store: Store, scans: np.ndarray) -> None:
        """DataError if no finding varies among these scans."""
        self._refuse_alike(self.truth(store)[scans])

    def _refuse_alike(self, truth: np.ndarray) -> None:
        if not any({0.0, 1.0} <= set(column.tolist()) for column in truth.T):
            names = ", ".join(self.targets)
            raise DataError(
                problem=f"all labelled scans have the same known values of {names}",
                remedy="raise num_labelled, or use another seed",
            )

    def target_of(self, store: Store, scan: int) -> tuple[float, ...]:
        """The findings of the scan, NaN if unknown."""
        return tuple(self.truth(store)[scan].tolist())

    def weigh(self, store: Store, scans: np.ndarray, targets: Tensor) -> Tensor:
        """``Float[N, K]``: 0 if unknown, else 1; balanced: mean 1 per finding, equal totals for 1 and 0."""
        weights = torch.isfinite(targets).float()
        if self.class_weights == "none":
            return weights
        truth = self.truth(store)[scans]
        counts = np.stack([(truth == value).sum(0) for value in (0, 1)], axis=1)
        of_kind = torch.from_numpy(balancing(counts)).float()
        return weights * torch.where(targets == 1, of_kind[:, 1], of_kind[:, 0])

    def loss(self, model: nn.Module, batch: CropBatch, recipe: ViewRecipe) -> Loss:
        """Weighted binary cross-entropy of the augmented crops of one rank."""
        logits: Tensor = model(batch.augmented(recipe))
        with torch.autocast(logits.device.type, enabled=False):
            # Unknown findings have weight 0 but count in the mean, so that all ranks divide by the same
            # number.
            value = F.binary_cross_entropy_with_logits(
                logits.float(), batch.targets.nan_to_num(0.0), batch.weights
            )
        return Loss(value, {"loss": all_mean(value.detach())})

    def output(self, model: nn.Module, store: Store) -> Callable[[Tensor], Tensor]:
        """The probability of each finding."""
        return lambda crops: model(crops).float().sigmoid()

    def probe_metrics(
        self,
        probe: Probe,
        known: Labelled,
        features: np.ndarray,
        examples: Sequence[Example],
        store: Store,
        seed: int,
    ) -> Measurement:
        """Metrics on the test examples of one probe per finding, and one row per scan and finding.

        A finding that does not vary among the labelled scans gets a constant probability, which measures
        chance. DataError if no finding varies.
        """
        self._refuse_alike(known.targets)
        columns = [_of_finding(probe, known, k, features, seed) for k in range(len(self.targets))]
        return self.measure(np.stack(columns, axis=1), examples, store, seed)

    def measure(self, found: np.ndarray, examples: Sequence[Example], store: Store, seed: int) -> Measurement:
        """Measures per finding and averaged, and one row per scan and known finding."""
        truth = targets_of(examples)
        rows = case_rows(store.collection.table.iloc[[example.scan for example in examples]])
        cases = [
            {
                **row,
                "class": name,
                "present": int(t),
                "probability": round(float(p), 6),
                "brier": round(float(p - t) ** 2, 6),
            }
            for row, predicted, true in zip(rows, found, truth, strict=True)
            for name, p, t in zip(self.targets, predicted, true, strict=True)
            if np.isfinite(t)
        ]
        return finding_metrics(found, truth, self.targets, patients_of(rows), seed), cases


def _finding(store: Store, name: str, where: str) -> np.ndarray:
    """``Float64[scans]``: a column of the manifest. ConfigError if its values are not of a finding."""
    found = numbers(
        store,
        name,
        lambda values: np.isin(values, (0, 1)),
        where,
        "is neither 0, 1 nor empty; use one column per finding (for names in one cell: pandas' "
        "str.get_dummies), with empty cells for uncertain findings",
    )
    values = set(found[~np.isnan(found)].tolist())
    if len(values) < 2:
        problem = "all scans have it" if values == {1.0} else "no scan has it"
        raise ConfigError(
            problem=f"{(problem if values else 'unknown for all scans')}, so it cannot be classified",
            remedy="remove it",
            place=where,
        )
    return found


def _of_finding(probe: Probe, known: Labelled, k: int, features: np.ndarray, seed: int) -> np.ndarray:
    """``Float64[N]``: probability of one finding, from a probe trained on scans with a known value."""
    rows = np.flatnonzero(np.isfinite(known.targets[:, k]))
    targets = known.targets[rows, k].astype(int)
    if len(set(targets.tolist())) < 2:
        return np.full(len(features), targets.mean() if len(rows) else 0.5)
    train = Labelled(known.features[rows], targets, tuple(known.patients[row] for row in rows))
    return probe.probabilities(train, features, 2, seed)[:, 1]

"""Embedding export at the end of pretraining: features of training crops, and label-free scores.

All encoders get the same crops and augmentations of the same scans, whatever their pair strategies.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from medcl3d.config.field_types import Choice
from medcl3d.core.columns import KNOWN_COLUMNS
from medcl3d.core.geometry import Box, ViewSpec, triple
from medcl3d.distributed.collectives import of_all_ranks, own_part, rank
from medcl3d.distributed.precision import autocast, autocast_dtype
from medcl3d.evaluation.metrics.label_free import label_free
from medcl3d.io.atomic import open_atomic, write_json
from medcl3d.pairs import PAIRS
from medcl3d.sampling.augment import make_views
from medcl3d.sampling.pair_dataset import PairDataset
from medcl3d.sampling.plan import Plan
from medcl3d.store.scan_selection import ScanSelection, pretraining_scans
from medcl3d.store.store import Store
from medcl3d.training.run_folder import RunFolder

if TYPE_CHECKING:
    from medcl3d.pretraining.parts import Pretraining

SCHEMA = 1
SEED = 0  # seed of the crops, independent of the seed of the run
NUM_CROPS = 256
BATCH_SIZE = 32
SCORES, FEATURES = "label_free.json", "features.npz"


@torch.no_grad()
def export_embeddings(parts: Pretraining, run: RunFolder, device: torch.device) -> None:
    """Write label-free scores of crops to label_free.json, and their features and metadata to features.npz.

    All ranks call it and compute a part, and rank 0 writes. The number of crops is `NUM_CROPS`, or the number
    of training samples if that is smaller. Non-finite features give a warning and no scores; the run still
    finishes.
    features.npz: `features` ``Float32[N, F]`` of one augmentation of each crop, `scan` and `patient`,
    `structure` (the label at the centre of the crop, "" if there is none), and every column of metadata, as
    text.
    """
    scans = pretraining_scans(parts.store, parts.config.data)
    strategy, recipe = PAIRS.build(Choice("augmented_views", {})), parts.learner.recipe
    train = parts.config.train
    crops = min(NUM_CROPS, train.steps * train.samples_per_step)
    plan = Plan(strategy.anchors(scans.collection).ids, min(BATCH_SIZE, crops), SEED)
    dataset = PairDataset(parts.store, scans, strategy, recipe, plan, crops // plan.samples_per_step)
    network = parts.learner.network.eval().to(device)
    dtype = autocast_dtype(train.precision, device)

    def pooled(step: int) -> tuple[torch.Tensor, Sequence[ViewSpec]]:
        raw = dataset[step]
        with autocast(device, dtype):
            features = network.encoder(make_views(raw.to(device), recipe).main.voxels).pooled
        return features.float().cpu(), raw.main.views[::2]

    found = of_all_ranks([pooled(step) for step in own_part(range(len(dataset)))])
    if rank() != 0:
        return
    views = [view for _, of_step in found for view in of_step]
    both = torch.cat([features for features, _ in found]).reshape(len(views), 2, -1).numpy()
    scores = label_free(both[:, 0], both[:, 1])
    if not scores:
        wrong = int((~np.isfinite(both)).any((1, 2)).sum())
        run.warn(
            train.steps,
            f"the encoder's features of {wrong} of {len(views)} crops are not finite: no label-free scores",
        )
    write_json(run.path / SCORES, {"schema": SCHEMA, "crops": len(views), "scores": scores})
    packed = io.BytesIO()
    np.savez(packed, features=both[:, 0], **_metadata(parts.store, scans, views))  # type: ignore[arg-type]
    with open_atomic(run.path / FEATURES) as file:
        file.write(packed.getvalue())


def _metadata(store: Store, scans: ScanSelection, views: list[ViewSpec]) -> dict[str, np.ndarray]:
    """Metadata and structure of each crop, as arrays of text."""
    table = scans.collection.table.iloc[[view.scan for view in views]]
    metadata = [name for name in table if name not in KNOWN_COLUMNS]
    columns = {
        str(name): table[name].fillna("").astype(str).to_numpy(dtype=str)
        for name in ("scan", "patient", "modality", *metadata)
    }
    structures = [_structure(store, int(scans.rows[view.scan]), view.box) for view in views]
    return columns | {"structure": np.array(structures, dtype=str)}


def _structure(store: Store, scan: int, box: Box) -> str:
    if not store.has_label(scan):
        return ""
    centre = np.array(box.start) + np.array(box.size) // 2
    centre = np.clip(centre, 0, np.array(store.collection.shapes[scan]) - 1)
    value = int(store.read_label(scan, Box(triple(centre), (1, 1, 1))).ravel()[0])
    return store.label_names.get(value, str(value)) if value else ""

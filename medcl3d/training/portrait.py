"""What a pretrained encoder makes of crops that it was trained on, once it is done: scores without labels, and features to look at.

Every encoder is asked about the same crops and augmentations of the same scans, whatever its own pairs were.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import torch

from medcl3d.data.atomic import replacing, write_json
from medcl3d.data.columns import KNOWN_COLUMNS
from medcl3d.data.in_use import ScansInUse, pretraining_scans
from medcl3d.data.loader import PairDataset, Plan, make_views
from medcl3d.data.store import Store
from medcl3d.evaluation.label_free import label_free
from medcl3d.pairs import PAIRS
from medcl3d.registry import Choice
from medcl3d.training.logs import RunFolder
from medcl3d.training.precision import autocast, autocast_dtype
from medcl3d.types import Box, ViewSpec, triple

if TYPE_CHECKING:
    from medcl3d.training.pretrain import Pretraining

SCHEMA = 1
SEED = 0  # of the crops, which are to be the same whatever a run's seed is
NUM_CROPS = 256
AT_ONCE = 32
SCORES, FEATURES = "label_free.json", "features.npz"


@torch.no_grad()
def portray(parts: Pretraining, run: RunFolder, device: torch.device) -> None:
    """Write the scores of crops to label_free.json, and their features to features.npz with what is known of each.

    There are `NUM_CROPS` of them, or as many as training has seen, where these are fewer. Features that are no finite numbers have
    no scores: that is a warning, and the run ends as any other.
    features.npz: `features` ``Float32[N, F]`` of one augmentation of each crop, `scan` and `patient`, `structure` (the label
    at the crop's middle, "" where there is none), and every column of metadata, as text.
    """
    scans = pretraining_scans(parts.store, parts.config.data)
    strategy, recipe = PAIRS.build(Choice("augmented_views", {})), parts.learner.recipe
    train = parts.config.train
    crops = min(NUM_CROPS, train.steps * train.samples_per_step)
    plan = Plan(strategy.anchors(scans.collection).ids, min(AT_ONCE, crops), SEED)
    dataset = PairDataset(parts.store, scans, strategy, recipe, plan, crops // plan.samples_per_step)
    network = parts.learner.network.eval().to(device)
    dtype = autocast_dtype(train.precision, device)
    found: list[torch.Tensor] = []
    views: list[ViewSpec] = []
    for step in range(len(dataset)):
        raw = dataset[step]
        with autocast(device, dtype):
            pooled = network.encoder(make_views(raw.to(device), recipe).main.voxels).pooled
        found.append(pooled.float().cpu())
        views += raw.main.views[::2]
    both = torch.cat(found).reshape(len(views), 2, -1).numpy()
    scores = label_free(both[:, 0], both[:, 1])
    if not scores:
        wrong = int((~np.isfinite(both)).any((1, 2)).sum())
        run.warn(
            train.steps, f"the encoder's features of {wrong} of {len(views)} crops are no finite numbers: it has no scores without labels"
        )
    write_json(run.path / SCORES, {"schema": SCHEMA, "crops": len(views), "scores": scores})
    packed = io.BytesIO()
    np.savez(packed, features=both[:, 0], **_known(parts.store, scans, views))  # type: ignore[arg-type]
    with replacing(run.path / FEATURES) as file:
        file.write(packed.getvalue())


def _known(store: Store, scans: ScansInUse, views: list[ViewSpec]) -> dict[str, np.ndarray]:
    """What the manifest and the labels say of each crop, as arrays of text."""
    table = scans.collection.table.iloc[[view.scan for view in views]]
    metadata = [name for name in table if name not in KNOWN_COLUMNS]
    columns = {str(name): table[name].fillna("").astype(str).to_numpy(dtype=str) for name in ("scan", "patient", "modality", *metadata)}
    structures = [_structure(store, int(scans.rows[view.scan]), view.box) for view in views]
    return columns | {"structure": np.array(structures, dtype=str)}


def _structure(store: Store, scan: int, box: Box) -> str:
    if not store.has_label(scan):
        return ""
    middle = np.array(box.start) + np.array(box.size) // 2
    middle = np.clip(middle, 0, np.array(store.collection.shapes[scan]) - 1)
    value = int(store.read_label(scan, Box(triple(middle), (1, 1, 1))).ravel()[0])
    return store.label_names.get(value, str(value)) if value else ""

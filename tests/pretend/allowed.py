"""The reads that a step may cause on a device: the CPU waits for each of them. All others are a regression.

Places are functions below medcl3d, as the pretended device records them.
"""

from __future__ import annotations

MAX_READS = MAX_BLOCKING = 2
"""Reads and blocking copies per step whose metrics are not logged."""

READS = {
    "training.loop._read": "loss and norm of the gradient, in one read: whether weights may change",
    "objectives.contrast._valid": "the number of points that are inside all views",
    "objectives.distance_regression._valid": "the same",
    "objectives.global_pairs.global_pairs": "the number of samples with a positive, of which statistics are",
    "losses.budget.BudgetedPairs.add": "the number of pairs with a budget",
    "objectives.relating.EmbeddingQueue.content": "the size of an embedding queue, until it is full",
    "objectives.swav.SwAV._filled": "the same",
    "encoders.vit3d._kept": "the number of visible tokens, which must be equal in all crops",
}
MORE_READS = {"cycle_voxels": 13, "region_points": 3}
"""Further reads per step, on points: cycles are searched sample by sample, regions are counted."""
FURTHER = ("pairs.cycle_voxels.", "pairs.region_points.")
"""Where these further reads are."""

INFERENCE = {
    "downstream.crop_dataset.mean_outputs": "the outputs of a batch of crops",
    "downstream.sliding_window.sliding_window": "the probabilities of a group of windows",
    "downstream.windows.MeanMap.add": "the features of a window",
}
"""Reads of evaluation and prediction, one per batch of crops or windows: the result is needed on the CPU."""

MAX_COLLECTIVES = {
    "barlow_twins": 13,
    "byol": 10,
    "dense": 6,
    "dino": 13,
    "distance_regression": 6,
    "global_dense": 12,
    "mae": 3,
    "mae_contrastive": 9,
    "moco": 8,
    "simclr": 8,
    "simsiam": 9,
    "swav": 7,
    "vicreg": 13,
}
"""Collectives per step of several ranks. All-gathers of rows for each batch norm of a head, of embeddings and
of keys, and a reduce-scatter for each that has a gradient; one sum of all numbers, logged or not; the
gradients, in buckets of 25 MiB; the votes to stop. Momentum encoders have heads too."""

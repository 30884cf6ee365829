"""`medcl3d audit`: how many of a strategy's positives and negatives join the same structure or class."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medcl3d.config.loading import load
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation
from medcl3d.distributed.collectives import say
from medcl3d.downstream.transfer import load_weights
from medcl3d.encoders.network import Network
from medcl3d.io.atomic import write_text
from medcl3d.io.disk_space import require_writable
from medcl3d.io.progress import track
from medcl3d.objectives.dense import point_keys, sample_rows
from medcl3d.pairs import needs_features
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.pair_counts import PairAudit, PairCounts
from medcl3d.pretraining.pair_labels import STRUCTURES, Labels, Structures, labels_of
from medcl3d.pretraining.pair_measures import PairFacts, distances_of
from medcl3d.pretraining.parts import Pretraining, assemble
from medcl3d.pretraining.relation_of_features import RelationOfFeatures
from medcl3d.pretraining.summary import summary
from medcl3d.sampling.augment import make_views
from medcl3d.sampling.raw_batch import RawBatch

BATCHES = 20
FEW_BATCHES = 5  # of an audit beside other work: show_pairs, the end of a pretraining
PAIR_AUDIT = "pair_audit.json"  # in the run folder of a pretraining


def audit(
    config_path: Path | str,
    overrides: Sequence[str] = (),
    *,
    by: str = STRUCTURES,
    encoder: Path | None = None,
    batches: int = BATCHES,
    out: Path | None = None,
    check: bool = False,
) -> PairAudit | None:
    """Audit the pairs of a pretraining's configuration against label maps or classes, without training.

    by       "structures" compares label maps; otherwise a column of the manifest with classes
    encoder  run folder of a pretraining, for strategies whose pairs depend on features: its frozen features
             take the place of the trained embeddings
    batches  number of batches
    out      a .json file; the pairs of patients are written to a .csv of the same name
    check    validate only

    ConfigError, DataError: the configuration is wrong, or no pretraining scan has a label map or class.
    """
    if batches < 1:
        raise ConfigError(f"--batches = {batches}: give a number above 0")
    if out is not None and out.suffix.lower() != ".json":
        raise ConfigError(f"--out {out}: the audit is written as JSON; use a name that ends in .json")
    parts = assemble(load(config_path, overrides, PretrainConfig))
    labels, network = labels_of(parts, by), None
    if encoder is not None:
        network = parts.learner.network
        load_weights(network, encoder, "encoder")
        network.eval()
    say(summary(parts))
    if out is not None:
        require_writable(out.parent, "--out")
    if check:
        return None
    found = audit_of(parts, labels, network, batches)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, json.dumps(found.as_dict(), indent=1) + "\n")
        write_text(out.with_suffix(".csv"), found.patient_pairs.to_csv(index=False))
    say("\n".join(found.lines()))
    return found


def audit_by_structures(parts: Pretraining, network: Network | None = None) -> PairAudit | None:
    """Audit the first `FEW_BATCHES` batches by label maps; None if none of their items is in a structure."""
    if not any(parts.store.has_label(int(row)) for row in parts.scans.rows):
        return None
    try:
        return audit_of(parts, Structures(parts.store), network, FEW_BATCHES)
    except DataError:
        return None


def audit_of(
    parts: Pretraining, labels: Labels, network: Network | None = None, batches: int = BATCHES
) -> PairAudit:
    """Audit the first `batches` batches. network: frozen features for strategies that use them."""
    counts, facts, scans = PairCounts(labels), [], np.asarray(parts.scans.rows)
    for batch in _batches(parts, network, batches):
        keys, relation, position_mm = batch.keys, batch.relation, batch.position_mm
        if position_mm is None:
            items, composition = "views", labels.of_views(batch.raw, scans)
        else:
            items, composition = "points", labels.of_points(keys, position_mm, scans)
        counts.add(keys, batch.columns, relation, composition)
        facts.append(PairFacts(items, keys, relation, {}, {}))
    if not counts.anchors:
        raise DataError(f"{parts.store.root}: no item of {batches} batches is in a structure or has a class")
    notes = []
    if needs_features(parts.strategy) and network is None:
        notes.append("pairs and weights that depend on a whole batch are not included; give an encoder")
    collection = parts.scans.collection
    names = dict(zip(collection.columns["patient"], collection.table["patient"].astype(str), strict=True))
    return counts.result(facts[0].items, batches, distances_of(facts), names, tuple(notes))


@dataclass(frozen=True)
class _Batch:
    """One batch: its items, the relation to the columns (items, then a queue's), world mm of points."""

    raw: RawBatch
    keys: Keys
    columns: Keys
    relation: Relation
    position_mm: Tensor | None


def _batches(parts: Pretraining, network: Network | None, number: int) -> Iterator[_Batch]:
    dataset, relating = parts.dataset(), parts.learner.relating
    with_features = None if network is None else RelationOfFeatures(network, relating)
    for step in track(range(number), "auditing batches"):
        raw = dataset[step]
        batch = make_views(raw, parts.learner.recipe)
        keys, position_mm, valid = raw.keys, None, None
        if raw.points is not None:
            keys = point_keys(batch.main, raw.points)
            valid = torch.isfinite(keys.position_mm).all(1).nonzero().flatten()
            position_mm = raw.points.position_mm[sample_rows(batch.main)].flatten(0, 1)[valid]
            keys = keys[valid]
        if with_features is None:
            yield _Batch(raw, keys, keys, relating.relate(keys, keys, None), position_mm)
        else:
            found = with_features(batch, keys, valid)
            yield _Batch(raw, keys, found.columns, found.relation, position_mm)

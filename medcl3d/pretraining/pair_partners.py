"""The anchors of a batch that a picture shows, and their partners: what attracts, repels and is ignored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medcl3d.pretraining.pair_measures import KINDS, WITHIN, PairFacts, distance_of_pairs, place_of_pairs

MAX_PARTNERS = 4
NUMBERS = {"attract": 2, "budget": 1, "ignore": 1, "repel": 2}  # partners of a kind; repel fills the rest

CLEAR_P, CLEAR_M = 0.2, 1.5  # an attraction across samples and a stronger repulsion worth showing


@dataclass(frozen=True)
class Partner:
    """An item that an anchor is related to.

    column  its column in the relation
    kind    one of `KINDS`
    """

    column: int
    kind: str


def partners_of(facts: PairFacts, row: int) -> tuple[Partner, ...]:
    """At most `MAX_PARTNERS` partners of an anchor: attracted ones, ignored ones, then repelled ones.

    The most attracted first, then the most repelled; ties by distance. The second of a kind is of another
    patient than the first, or of another sample, if there is one.
    """
    kinds, columns = facts.kinds()[row].numpy(), facts.columns
    one = facts.keys[row : row + 1]
    distance = distance_of_pairs(one, columns, facts.items)[0].numpy()
    place = place_of_pairs(one, columns)[0].numpy()
    relation = facts.relation
    weight = {"attract": relation.positive[row], "repel": relation.negative[row]}
    samples, found = columns.sample.numpy(), list[Partner]()
    for kind, number in NUMBERS.items():
        candidates = np.flatnonzero(kinds == KINDS.index(kind))
        strength = np.round(weight[kind].double().numpy(), 1) if kind in weight else np.zeros(len(kinds))
        order = candidates[np.lexsort((distance[candidates], -strength[candidates]))]
        chosen = [int(column) for column in order[:1]]
        if chosen and number > 1:
            rest = [int(column) for column in order[1:] if samples[column] != samples[chosen[0]]]
            rest = sorted(rest, key=lambda column: place[column] == place[chosen[0]]) or order[1:2].tolist()
            chosen += rest[:1]
        found += [Partner(column, kind) for column in chosen]
    return tuple(found[:MAX_PARTNERS])


def chosen_anchors(facts: PairFacts, number: int, brightness: Sequence[float]) -> list[int]:
    """Rows of `number` anchors of different samples: those with the most kinds of partners.

    Attraction across samples and stronger repulsion are kinds too. brightness: of the crop of each row; the
    largest decides ties, so that background is rarely shown.
    """
    kinds, relation = facts.kinds(), facts.relation
    found = [kinds == index for index in range(len(KINDS))]
    found.append((place_of_pairs(facts.keys, facts.columns) != WITHIN) & (relation.positive >= CLEAR_P))
    found.append(relation.negative >= CLEAR_M)
    variety = torch.stack([kind.any(1) for kind in found]).sum(0).numpy()
    order = np.lexsort((-np.asarray(brightness), -variety))
    samples, rows = facts.keys.sample.tolist(), dict[int, int]()
    for row in order.tolist():
        rows.setdefault(samples[row], row)
    return list(rows.values())[:number]

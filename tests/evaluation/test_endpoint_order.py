"""Adjusted p-values of arms and ordered endpoints: Holm and fixed sequences as special cases, and the
familywise error.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from medcl3d.evaluation.statistics.intervals import holm, in_order


def slow(p: np.ndarray, alpha: float) -> set[tuple[int, int]]:
    """Rejections by the graph of Bretz et al. 2009, algorithm 1, with its weights updated one by one."""
    arms, endpoints = p.shape
    nodes = list(itertools.product(range(arms), range(endpoints)))
    weight = {node: (1 / arms if node[1] == 0 else 0.0) for node in nodes}
    edge = {(a, b): 0.0 for a in nodes for b in nodes}
    for arm, k in nodes:
        if k + 1 < endpoints:
            edge[(arm, k), (arm, k + 1)] = 1.0
        else:
            edge |= {((arm, k), (other, 0)): 1 / (arms - 1) for other in range(arms) if other != arm}
    rejected: set[tuple[int, int]] = set()
    while chosen := [
        node for node in nodes if p[node] <= alpha * weight[node] * (1 + 1e-12) and weight[node] > 0
    ]:
        gone = chosen[0]
        rejected.add(gone)
        nodes.remove(gone)
        weight |= {node: weight[node] + weight[gone] * edge[gone, node] for node in nodes}
        new = {}
        for a, b in itertools.permutations(nodes, 2):
            through = edge[a, gone] * edge[gone, a]
            new[a, b] = (edge[a, b] + edge[a, gone] * edge[gone, b]) / (1 - through) if through < 1 else 0.0
        edge = new
    return rejected


@pytest.mark.parametrize("shape", [(1, 3), (2, 2), (3, 2), (3, 3)])
def test_rejections_are_those_of_the_graph(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    sizes = set()
    for _ in range(200):
        p = rng.random(shape) ** 4
        found = {tuple(map(int, node)) for node in np.argwhere(in_order(p) <= 0.05)}
        assert found == slow(p, 0.05)
        sizes.add(len(found))
    assert len(sizes) > 3


def test_one_endpoint_is_holm_and_one_arm_a_fixed_sequence() -> None:
    rng = np.random.default_rng(1)
    for _ in range(10):
        p = rng.random(5) ** 3
        assert in_order(p[:, None])[:, 0] == pytest.approx(holm(p))
        assert in_order(p[None])[0] == pytest.approx(np.maximum.accumulate(p))
    assert in_order([[0.2, 0.001]]).tolist() == [[0.2, 0.2]], (
        "an endpoint is not rejected unless the previous one is"
    )
    with pytest.raises(ValueError, match="must be in"):
        in_order([[np.nan, 0.1]])


@pytest.mark.parametrize(
    "true", [(0, 0, 0, 0, 0, 0), (5, 0, 0, 0, 0, 0), (5, 0, 5, 5, 0, 0), (0, 5, 0, 5, 5, 0)]
)
def test_the_familywise_error(true: tuple[int, ...]) -> None:
    """Three arms, two endpoints, some nulls true: at most 5% (and noise) have a false rejection."""
    rng = np.random.default_rng(2)
    effect = np.reshape(true, (3, 2))
    shared, own = rng.normal(size=(4000, 1, 1)), rng.normal(size=(4000, 3, 2))
    p = 2 * stats.norm.sf(np.abs(effect + np.sqrt(0.5) * (shared + own)))
    rejected = np.stack([in_order(one) for one in p]) < 0.05
    assert (rejected & (effect == 0)).any((1, 2)).mean() < 0.058

"""Label-free scores of frozen features, for choosing between encoders without labels."""

from __future__ import annotations

import numpy as np

BETTER = {"alignment": "lower", "uniformity": "lower", "rankme": "higher", "alpha_req": "nearer to 1"}
"""The better direction of each score according to its authors; comparisons report the agreement."""


def label_free(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Scores of features ``[N, F]`` of two augmentations of N crops, one row per crop.

    Undefined scores are left out: all of them for non-finite features, alpha_req for collapsed ones.
    """
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return {}
    # Features of 0 have no direction and stay 0: they are as collapsed as features with one common direction.
    of_float = (first.astype(float), second.astype(float))
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in of_float)
    found = {"alignment": alignment(a, b), "uniformity": uniformity(a)}
    found |= {"rankme": rankme(first), "alpha_req": alpha_req(first)}
    return {name: value for name, value in found.items() if np.isfinite(value)}


def alignment(first: np.ndarray, second: np.ndarray) -> float:
    """Mean squared distance of unit vectors of two augmentations, 0 to 4.

    Source: Wang and Isola, ICML 2020, eq. 2 (alpha = 2).
    """
    return float(np.square(first - second).sum(1).mean())


def uniformity(z: np.ndarray) -> float:
    """log of the mean of exp(-2 d^2) over pairs of unit vectors: 0 if all are equal.

    NaN for fewer than two vectors. Source: Wang and Isola, ICML 2020, eq. 3.
    """
    if len(z) < 2:
        return float("nan")
    squared_length = np.square(z).sum(1)  # 1, or 0 for a vector without a direction
    squared = np.clip(squared_length[:, None] + squared_length - 2 * z @ z.T, 0, None)
    pairs = ~np.eye(len(z), dtype=bool)
    return float(np.log(np.exp(-2 * squared[pairs]).mean()))


def rankme(features: np.ndarray) -> float:
    """Exponential of the entropy of the singular values: the effective rank, 1 to min(N, F).

    Source: Garrido et al., ICML 2023, eq. 1.
    """
    values = np.linalg.svd(features.astype(float), compute_uv=False)
    share = values / max(values.sum(), 1e-12) + 1e-7
    return float(np.exp(-(share * np.log(share)).sum()))


def alpha_req(features: np.ndarray) -> float:
    """Decay of the eigenvalues of the covariance, lambda_i ~ i^-alpha, by least squares of logarithms.

    Uses eigenvalues above a millionth of the largest, since the others are rounding errors. NaN if there are
    fewer than three, or if features differ by less than a millionth of their length, which is the rounding of
    float32. Source: Agrawal et al., NeurIPS 2022, eq. 3.
    """
    features = features.astype(float)
    values = np.linalg.svd(features - features.mean(0), compute_uv=False) ** 2
    spread = len(values) > 0 and values[0] > 1e-12 * np.square(features).sum()
    values = values[values > 1e-6 * values[0]] if spread else values[:0]
    if len(values) < 3:
        return float("nan")
    slope = np.polyfit(np.log(np.arange(1, len(values) + 1)), np.log(values), 1)[0]
    return float(-slope)

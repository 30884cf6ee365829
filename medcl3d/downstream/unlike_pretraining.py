"""Differences between how scans are prepared here and how they were for the pretrained weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from medcl3d.store.store import Store

SPACING_TOLERANCE = 0.1
LIMITS = {"ct": ("window_hu", "value_range"), "mri": ("percentiles", "value_range")}
"""Kind of intensity -> options of `medcl3d prepare` that determine its values."""


def median_spacing(store: Store) -> list[float]:
    """Voxel size in mm along each axis, median over the scans of a store."""
    return [float(value) for value in np.median(store.collection.spacings, axis=0)]


def unlike_pretraining(store: Store, pretrained: Mapping[str, Any]) -> list[str]:
    """Differences from pretraining that affect the weights: voxel size and intensities, each a sentence."""
    found = []
    theirs, ours = pretrained.get("spacing_mm"), median_spacing(store)
    if theirs and not np.allclose(theirs, ours, rtol=SPACING_TOLERANCE):
        found.append(
            f"pretrained at {theirs} mm per voxel, these scans have {ours}; prepare them with spacing_mm as "
            "in pretraining"
        )
    before, now = pretrained.get("intensity") or {}, store.intensity()
    kind = str(before.get("kind") or "")
    if kind and kind != now.get("kind"):
        found.append(
            f"pretrained on intensities of kind {kind}, these scans are prepared as {now.get('kind')}"
        )
        return found
    for name in LIMITS.get(kind, ()):
        if before.get(name) != now.get(name) and (name in before or "layout" not in pretrained):
            problem = f"pretrained on intensities with {name} {before.get(name)}, these scans have"
            remedy = f"prepare them with {name}={_option(before.get(name))}"
            found.append(f"{problem} {now.get(name)}; {remedy}")
    return found


def _option(value: object) -> str:
    """A value as on the command line."""
    return str(value).replace(" ", "") if value is not None else "null"

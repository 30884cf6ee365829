"""Why two items are related, in a line of text from the key columns that a strategy declares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from medcl3d.core.batch import REGION
from medcl3d.core.body_coordinates import BODY
from medcl3d.core.columns import ID_COLUMNS
from medcl3d.core.keys import Keys
from medcl3d.pairs import PairStrategy, all_parts, traits_of
from medcl3d.pairs.boxes import iou_mm
from medcl3d.pairs.mirror_position import MIRROR
from medcl3d.pairs.placebo import POINTS, SLICE
from medcl3d.pretraining.pair_measures import distance_of_pairs
from medcl3d.store.store import Store

# Compared by who the two items are of, or by where they are.
COMPARED_ALWAYS = ("patient", "session_days", "modality", POINTS, SLICE, BODY, REGION)


@dataclass(frozen=True)
class PairReasons:
    """Texts of pairs from a strategy's `signal_columns`, and from how scans and positions relate.

    columns  the signal columns
    sides    whether the strategy distinguishes left and right
    names    column -> code -> its text, of categories
    regions  value -> name of a region
    """

    columns: tuple[str, ...]
    sides: bool
    names: Mapping[str, Mapping[float, str]]
    regions: Mapping[int, str]

    @staticmethod
    def of(strategy: PairStrategy, store: Store) -> PairReasons:
        """The reasons of a strategy, with the texts of a store's categories."""
        traits, collection = traits_of(strategy), store.collection
        names: dict[str, dict[float, str]] = {}
        for name, codes in collection.columns.items():
            texts = collection.table[name]
            is_number = pd.to_numeric(texts, errors="coerce").notna().sum() == texts.notna().sum()
            if name in ID_COLUMNS or not is_number:
                names[name] = dict(zip(codes.tolist(), texts.astype(str), strict=True))
        supervoxels = traits.supervoxel_mm is not None
        sides = any(traits_of(part).distinguishes_sides for part in all_parts(strategy))
        return PairReasons(traits.signal_columns, sides, names, {} if supervoxels else store.label_names)

    def text(self, one: Keys, other: Keys, similarity: float | None = None) -> str:
        """The reason for the relation of two items, each given by keys of one row."""
        parts = [self._scans(one, other), *self._visits(one, other), *self._values(one, other)]
        parts += self._position(one, other)
        if similarity is not None:
            parts.append(f"cosine {similarity:.2f}")
        return ", ".join(part for part in parts if part)

    @staticmethod
    def _scans(one: Keys, other: Keys) -> str:
        if one.sample == other.sample and one.point == other.point and not one.are_views:
            return "the same point"
        if one.scan == other.scan:
            same_box = torch.equal(one.center_mm, other.center_mm) and torch.equal(one.size_mm, other.size_mm)
            return "the same crop" if same_box and one.are_views else "the same scan"
        return "the same patient" if one.patient == other.patient else "another patient"

    def _visits(self, one: Keys, other: Keys) -> list[str]:
        """Days and modalities of two scans of a patient; modalities of two patients if they are a signal."""
        if one.scan == other.scan:
            return []
        days, found = abs(float(one.session_days - other.session_days)), []
        if one.patient == other.patient and np.isfinite(days):
            found.append("the same day" if days == 0 else f"{days:g} days")
        if "modality" in self.columns or (one.patient == other.patient and one.modality != other.modality):
            found.append(self._pair("modality", one, other))
        return found

    def _values(self, one: Keys, other: Keys) -> list[str]:
        """Values of the metadata columns of the signal, and regions of points."""
        if one.scan == other.scan and REGION not in self.columns:
            return []
        metadata = [name for name in self.columns if name not in COMPARED_ALWAYS]
        values = [f"{name} {self._pair(name, one, other)}" for name in metadata]
        if REGION in self.columns and REGION in one.metadata:
            first, second = (int(keys.metadata[REGION]) for keys in (one, other))
            if min(first, second) < 0:
                return values
            names = [self.regions.get(value, "background") for value in (first, second)]
            if not self.regions:
                return values if one.sample != other.sample else [*values, _same(first == second)]
            values.append(names[0] if first == second else f"{names[0]} / {names[1]}")
        return values

    def _pair(self, name: str, one: Keys, other: Keys) -> str:
        """The value of a column of two items: "61 / 63"."""
        numbers = [float(keys.column(name)) for keys in (one, other)]
        texts = self.names.get(name)
        return " / ".join(
            "unknown" if np.isnan(n) else f"{round(n, 1):g}" if texts is None else texts[n] for n in numbers
        )

    def _position(self, one: Keys, other: Keys) -> list[str]:
        """IoU or mm within a frame; mm in body coordinates across frames, if positions are a signal."""
        items = "views" if one.are_views else "points"
        mm = float(distance_of_pairs(one, other, items))
        if one.frame == other.frame:
            iou = float(iou_mm(one, other)) if items == "views" else 0.0
            if iou > 0 and SLICE not in self.columns:
                return [f"IoU {iou:.2f}"] if iou < 1 else []
            found = [f"{mm:.0f} mm apart"] if mm > 0 else []
        elif one.patient == other.patient or not self.columns or BODY in self.columns:
            found = [f"{mm:.0f} mm in body coordinates"]
        else:
            found = []
        mirrored = float((one.body - other.body * other.body.new_tensor(MIRROR)).norm())
        if self.sides and mirrored < mm:
            found.append(f"{mirrored:.0f} mm from the mirrored place")
        return found


def _same(same: bool) -> str:
    return "the same supervoxel" if same else "two supervoxels"

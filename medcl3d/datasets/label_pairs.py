"""Guess the image of each label map, from names and grids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from medcl3d.datasets.name_words import identifying_words
from medcl3d.datasets.path_roles import PathRoles, parts_of, stem_of
from medcl3d.io.axes import axes_like, turned_grid
from medcl3d.io.nifti_header import corner_distance


@dataclass(frozen=True)
class Grid:
    """Shape in voxels, and ``Float64[4, 4]`` voxel index -> RAS+ mm."""

    shape: tuple[int, ...]
    affine: np.ndarray


@dataclass(frozen=True)
class LabelPairs:
    """Path of an image -> path of its label map, and the label maps without one.

    unmatched  label maps that fit no image
    ambiguous  label maps that fit several images on different grids, or share their image with others
    """

    label_of: Mapping[str, str]
    unmatched: tuple[str, ...] = ()
    ambiguous: tuple[str, ...] = ()


def pair_label_maps(
    images: Sequence[str],
    labels: Sequence[str],
    roles: Mapping[str, PathRoles],
    grids: Mapping[str, Grid],
) -> LabelPairs:
    """Pair label maps with images of the same grid whose names share the most words.

    images, labels  paths
    roles           of all of them
    grids           path -> its grid; a path without one fits any grid

    A label map that fits several images equally is of all of them, since they share its grid; without grids
    it is ambiguous. An image takes no label map if several fit it.
    """
    known = {path: _Named.of(path, roles[path]) for path in (*images, *labels)}
    near = _Nearby.of({image: known[image] for image in images})
    found: dict[str, list[str]] = {}
    unmatched, ambiguous = [], set[str]()
    for label in labels:
        grid = grids.get(label)
        fits = [image for image in near.to(known[label]) if _is_same(grid, grids.get(image))]
        scores = {image: known[label].score(known[image]) for image in fits}
        best = max(scores.values(), default=None)
        if best is None or not best[0]:
            unmatched.append(label)
            continue
        nearest = [image for image, score in scores.items() if score == best]
        if len(nearest) > 1 and (grid is None or not all(image in grids for image in nearest)):
            ambiguous.add(label)
            continue
        for image in nearest:
            found.setdefault(image, []).append(label)
    ambiguous.update(label for several in found.values() if len(several) > 1 for label in several)
    label_of = {image: several[0] for image, several in found.items() if len(several) == 1}
    return LabelPairs(label_of, tuple(unmatched), tuple(sorted(ambiguous)))


def _is_same(label: Grid | None, image: Grid | None) -> bool:
    """Whether a label map may belong to an image, by the rule of `read_label`."""
    if label is None or image is None:
        return True
    if sorted(label.shape) != sorted(image.shape[:3]):
        return False
    shape, affine = turned_grid(label.shape, label.affine, axes_like(label.affine, image.affine))
    spacing_mm = np.linalg.norm(image.affine[:3, :3], axis=0)
    distance = corner_distance(affine, image.affine, image.shape[:3])
    return shape == image.shape[:3] and distance <= 0.1 * float(spacing_mm.min())


@dataclass(frozen=True)
class _Named:
    """The names of one file."""

    patient: str
    folder: str
    stem: frozenset[str]
    words: Counter[str]

    @staticmethod
    def of(path: str, roles: PathRoles) -> _Named:
        parts = parts_of(path)
        stem = identifying_words(stem_of(path))
        folders = [word for name in parts[:-1] for word in identifying_words(name)]
        return _Named(roles.patient, "/".join(parts[:-1]), frozenset(stem), Counter([*folders, *stem]))

    def score(self, image: _Named) -> tuple[bool, int, int, bool]:
        """How well this label map fits an image: whether at all, common words, other words, folder."""
        common = sum((self.words & image.words).values())
        others = sum((self.words - image.words).values()) + sum((image.words - self.words).values())
        is_near = self.folder == image.folder or image.folder.startswith(f"{self.folder}/")
        same_names = bool(self.stem) and self.stem <= set(image.words)
        fits = self.patient == image.patient or same_names or (is_near and not self.stem)
        return fits, common, -others, self.folder == image.folder


@dataclass(frozen=True)
class _Nearby:
    """Images by what they may share with a label map, so that not all pairs are compared."""

    by_key: Mapping[tuple[str, str], Sequence[str]]

    @staticmethod
    def of(known: Mapping[str, _Named]) -> _Nearby:
        by_key: dict[tuple[str, str], list[str]] = {}
        for image, one in known.items():
            parents = [str(one) for one in PurePosixPath(image).parents]
            keys = [("patient", one.patient), *(("word", word) for word in one.words)]
            for key in (*keys, *(("folder", "" if folder == "." else folder) for folder in parents)):
                by_key.setdefault(key, []).append(image)
        return _Nearby(by_key)

    def to(self, label: _Named) -> list[str]:
        """Images of the same patient, in the same folder, or with the label's rarest word, in one order."""
        keys = [("patient", label.patient)]
        if label.stem:
            keys.append(
                min((("word", word) for word in label.stem), key=lambda key: len(self.by_key.get(key, ())))
            )
        else:
            keys.append(("folder", label.folder))
        return list(dict.fromkeys(image for key in keys for image in self.by_key.get(key, ())))

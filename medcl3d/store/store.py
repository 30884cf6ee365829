"""The store: prepared scans in files from which single crops can be read at the cost of their own voxels."""

from __future__ import annotations

import hashlib
import json
import resource
import sys
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from medcl3d.core.collection import Collection
from medcl3d.core.errors import DataError
from medcl3d.core.geometry import Box, triple
from medcl3d.io.array_file import Stored, import_blosc2
from medcl3d.io.table_file import read_table
from medcl3d.store.quantise import AS_STORED, Scaling, scale, unpack
from medcl3d.store.stored_scan import (
    REGISTERED,
    SCHEMA,
    check_size,
    open_stored,
    read_registered,
    scaling_of,
    stored_names,
    stored_path,
)

# Entries of a description that are not kept in memory: the collection has them as arrays, or no user of a
# store needs them.
NOT_KEPT = (
    "affine", "class_voxels", "source_spacing_mm", "source_shape", "source_affine", "num_nonfinite",
    "atlas_source",
)  # fmt: skip


@dataclass(frozen=True)
class Store:
    """The output of `prepare`.

    root         the output folder of `prepare`
    collection   one row per scan; a scan's id is its row
    num_channels  of every scan
    label_names  class -> name
    scans        the description of each scan: shape, body, normalisation, source, hashes
    """

    root: Path
    collection: Collection
    num_channels: int
    label_names: dict[int, str]
    scans: tuple[dict[str, Any], ...]
    _maps: OrderedDict[tuple[int, bool], tuple[Stored, Path]] = field(
        default_factory=OrderedDict, repr=False, compare=False
    )

    @staticmethod
    def open(root: Path, sizes: bool = True) -> Store:
        """Open the output of `prepare`.

        sizes: whether every file must have the size that was written; `medcl3d check` compares hashes instead

        DataError if it is missing, incomplete, or has mixed options, or if a file has another size.
        """
        root = Path(root)
        message = f"{root}: contains no finished store; run `medcl3d prepare SOURCE ROOT --out {root}`"
        summary = _read_json(root / "prepared.json", message)
        if summary.get("schema") != SCHEMA:
            problem = f"the store has schema {summary.get('schema')!r}, this version reads {SCHEMA}"
            raise DataError(root, problem, "prepare it again")
        table = read_table(root / "manifest.csv")
        again = "run the same `medcl3d prepare` command again"
        scans, affines, from_world, shared = [], [], [], dict[str, dict[str, Any]]()
        registered = read_registered(root)
        for scan in table["scan"]:
            path = root / "store" / stored_names(scan)[2]
            message = f"{path}: the description of scan {scan!r} is missing or damaged; {again}"
            found = _read_json(path, message)
            if _without_kind(found["options"]) != _without_kind(summary["options"]):
                problem = f"scan {scan!r} was prepared with other options than the other scans"
                raise DataError(path, problem, again)
            affines.append(np.array(found["affine"], dtype=np.float64))
            of_body = found["body"].pop("from_world")
            of_body = registered[scan]["from_world"] if scan in registered else of_body
            from_world.append(np.array(of_body, dtype=np.float64))
            found["options"] = shared.setdefault(found["options"]["kind"], found["options"])
            scans.append({name: value for name, value in found.items() if name not in NOT_KEPT})
        contents = {found["scan"]: found["stored_sha256"] for found in scans}
        for scan, entry in registered.items():
            if scan in contents and contents.get(entry["registered"]) != entry["stored_sha256"]:
                problem = f"the body coordinates of scan {scan!r} are of an earlier content"
                raise DataError(root / REGISTERED, problem, again)
        if any(found.get("store") == "blosc2" for found in scans):
            import_blosc2(root)
        if sizes:
            for found, is_label in product(scans, (False, True)):
                if not is_label or "label_sha256" in found:
                    check_size(stored_path(root, found, is_label=is_label), found, is_label=is_label)
        collection = Collection.of(
            table.replace({"": np.nan, "n/a": np.nan}),
            np.array([s["shape"][1:] for s in scans], dtype=np.int64),
            np.array(affines),
            np.array([s["body"]["box"] for s in scans], dtype=np.int64),
            np.array(from_world),
        )
        names = {int(value): name for value, name in summary["label_names"].items()}
        return Store(root, collection, int(summary["num_channels"]), names, tuple(scans))

    def __len__(self) -> int:
        return len(self.scans)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": OrderedDict()}  # a worker opens its own maps

    def read_crop(self, scan: int, box: Box, out: np.ndarray | None = None) -> np.ndarray:
        """A box of a scan as ``Float32[C, D, H, W]``, padded with the scan's own value of empty space.

        out: the array to read into and to return (default: a new one). ValueError: its shape or type differs.
        """
        shape = (self.num_channels, *box.size)
        if out is not None and (out.shape != shape or out.dtype != np.float32):
            raise ValueError(f"out is {out.dtype}{list(out.shape)}; it must be float32{list(shape)}")
        values = self._map(scan, is_label=False)
        fill = np.asarray(self.scans[scan]["normalisation"]["fill"], dtype=np.float32)
        crop = np.empty(shape, dtype=np.float32) if out is None else out
        inside, target = _overlap(box, values.shape[1:])
        if target is None or tuple(s.stop - s.start for s in target) != tuple(box.size):
            crop[:] = fill[:, None, None, None]
        if target is not None:
            part = crop[(slice(None), *target)]
            part[:] = values[(slice(None), *inside)]
            scale(part, self.scaling(scan))
        return crop

    def read_volume(self, scan: int) -> np.ndarray:
        """A whole scan as ``Float32[C, D, H, W]``."""
        return unpack(self._map(scan, is_label=False)[...], self.scaling(scan))

    def scaling(self, scan: int) -> Scaling:
        """Factor and offset of the stored voxels: value = stored * factor + offset."""
        return scaling_of(self.scans[scan])

    def has_label(self, scan: int) -> bool:
        """Whether a segmentation is stored with the scan."""
        return "label_sha256" in self.scans[scan]

    def read_label(self, scan: int, box: Box | None = None) -> np.ndarray:
        """The segmentation (or a box of it) as ``Int16[D, H, W]``, padded with background, 0.

        Raises DataError for a scan without one.
        """
        if not self.has_label(scan):
            raise DataError(self.root, f"scan {self.scans[scan]['scan']!r} has no label")
        values = self._map(scan, is_label=True)
        if box is None:
            return np.array(values[...], dtype=np.int16)
        crop = np.zeros(box.size, dtype=np.int16)
        inside, target = _overlap(box, values.shape)
        if target is not None:
            crop[target] = values[inside]
        return crop

    def spacing_mm(self, scan: int) -> np.ndarray:
        """``Float64[3]`` mm per stored voxel."""
        return self.collection.spacings[scan]

    def intensity(self) -> dict[str, Any]:
        """The preparation options; `kind` joins all kinds if modalities differ, as in ct+mri."""
        kinds = sorted({scan["options"]["kind"] for scan in self.scans})
        return {**self.scans[0]["options"], "kind": "+".join(kinds)}

    def fingerprint(self) -> str:
        """A hash of everything stored: ids, voxels, labels, geometry."""
        digest = hashlib.sha256()
        for s, affine in zip(self.scans, self.collection.affines, strict=True):
            content = [s["scan"], s["shape"], affine.tolist(), s["stored_sha256"], s.get("label_sha256")]
            if scaling_of(s) != AS_STORED:  # of integers: the values follow from the scale
                content += [*scaling_of(s), s["normalisation"]["fill"]]
            digest.update(json.dumps(content).encode())
        return digest.hexdigest()

    def path(self, scan: int) -> Path:
        """The file of a scan's voxels."""
        return stored_path(self.root, self.scans[scan], is_label=False)

    def _map(self, scan: int, *, is_label: bool) -> Stored:
        key, about = (scan, is_label), self.scans[scan]
        if key in self._maps:
            self._maps.move_to_end(key)
            values, path = self._maps[key]
            # Reading a map beyond the end of its file ends the process (SIGBUS).
            check_size(path, about, is_label=is_label)
            return values
        path = stored_path(self.root, about, is_label=is_label)
        values = open_stored(self.root, about, is_label=is_label)
        if len(self._maps) >= _max_open():
            self._maps.popitem(last=False)
        self._maps[key] = values, path
        return values


def _without_kind(options: dict[str, Any]) -> dict[str, Any]:
    """The options without `kind`, which follows the modality; all others are the same for the whole store."""
    return {name: value for name, value in options.items() if name != "kind"}


@cache
def _max_open() -> int:
    """The number of memory maps to keep open per process: half of the file descriptors, at most 4096."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 4096 if allowed == resource.RLIM_INFINITY else max(16, min(4096, allowed // 2))


def _overlap(box: Box, shape: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...] | None]:
    """The part of the box inside a scan, as slices of the scan and of the box; None if there is none."""
    if min(box.size) < 1:
        raise ValueError(f"a box needs at least one voxel along every axis, got {box.size}")
    low = [max(0, a) for a in triple(box.start)]
    high = [min(n, b) for n, b in zip(shape, box.stop, strict=True)]
    if any(a >= b for a, b in zip(low, high, strict=True)):
        return (), None
    inside = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    return inside, tuple(slice(s.start - a, s.stop - a) for s, a in zip(inside, box.start, strict=True))


def _read_json(path: Path, message: str) -> dict[str, Any]:
    def interned(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """The names in many files would otherwise take memory once per file."""
        return {sys.intern(name): value for name, value in pairs}

    try:
        return json.loads(path.read_text(), object_pairs_hook=interned)
    except (OSError, ValueError):
        raise DataError(message) from None

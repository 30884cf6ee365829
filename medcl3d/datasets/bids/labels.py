"""Label maps of a BIDS derivative, and the image of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medcl3d.core.errors import ConfigError, DataError
from medcl3d.core.notes import Counted, naming
from medcl3d.datasets.bids.names import OF_A_DERIVATIVE, BidsName, session_of
from medcl3d.io.table_file import read_rows
from medcl3d.io.walk import VOLUMES, folders_under

SUFFIXES = ("dseg", "mask")
NATIVE = ("orig", "native", "individual", "scanner")  # spaces that are the image's own


@dataclass(frozen=True)
class LabelMap:
    """One label map: its path and parsed name."""

    path: str
    name: BidsName

    @property
    def pieces(self) -> frozenset[str]:
        """The pieces of the name that distinguish it from other label maps of its scan."""
        return frozenset(
            (*(f"{k}-{v}" for k, v in self.name.entities.items() if k in OF_A_DERIVATIVE), self.name.suffix)
        )

    def extra_pieces(self, wanted: frozenset[str]) -> frozenset[str]:
        """Pieces of the name that were not requested, without the space, which only gives the grid."""
        return self.pieces - wanted - {f"space-{self.name.entities.get('space')}"}

    @property
    def of(self) -> str | None:
        """The suffix of the image with the same grid: ``T1w_dseg``, ``space-T1w_dseg``; None if unknown."""
        others = self.name.suffixes[:-1]
        space = self.name.entities.get("space")
        return others[-1] if others else None if space in NATIVE else space


@dataclass(frozen=True)
class Derivative:
    """The folder whose label maps are used, and the requested ones among them."""

    folder: Path
    maps: tuple[LabelMap, ...]
    wanted: frozenset[str]


def find_derivative(
    root: Path, derivative: str | None, label: Sequence[str], skipped: Counted
) -> Derivative | None:
    """The label maps of `derivatives/` that match, None if there are none.

    derivative  its folder (None: the only one with label maps)
    label       pieces of their names
    skipped     counts the other NIfTI files

    Raises ConfigError for an unknown piece; DataError if several folders have label maps, or the given one
    has none.
    """
    for piece in label:
        if "-" in piece and piece.split("-", 1)[0] not in OF_A_DERIVATIVE:
            problem = f"{piece!r} does not distinguish label maps"
            raise ConfigError("label", list(label), problem, "write dseg, or desc-...")
    suffixes = tuple(piece for piece in label if "-" not in piece) or SUFFIXES
    derivatives, wanted = root / "derivatives", frozenset(label)
    folders = [path for path in sorted(derivatives.glob("*")) if path.is_dir()]
    maps_of = {path.name: _maps(root, path, suffixes, skipped) for path in folders}
    if derivative is not None and not maps_of.get(derivative):
        kinds = " or ".join(f"*_{suffix}" for suffix in suffixes)
        names = ", ".join(name for name, maps in maps_of.items() if maps)
        raise DataError(derivatives / derivative, f"no {kinds} files", f"found in: {names or 'none'}")
    requested = {name: maps for name, maps in maps_of.items() if maps and derivative in (None, name)}
    fits = {name: tuple(one for one in maps if wanted <= one.pieces) for name, maps in requested.items()}
    fitting = {name: maps for name, maps in fits.items() if maps}
    if len(fitting) > 1:
        remedy = "choose one with derivative=NAME, or none with derivative=none"
        raise DataError(derivatives, f"labels are in {', '.join(fitting)}", remedy)
    if not fitting and label:
        kinds = _kinds(one for maps in requested.values() for one in maps)
        raise DataError(derivatives, f"no label map has {_listed(wanted)}", f"found: {kinds or 'none'}")
    for name, maps in maps_of.items():
        why = f"do not have {_listed(wanted)}" if name in requested else "were not requested"
        for one in maps if name not in fitting or wanted else ():
            if name not in fitting or not wanted <= one.pieces:
                skipped.add(f"label maps of {name} {why} and are skipped", one.path)
    return next((Derivative(derivatives / name, maps, wanted) for name, maps in fitting.items()), None)


def _maps(root: Path, folder: Path, suffixes: Sequence[str], skipped: Counted) -> list[LabelMap]:
    maps = []
    for inner, files in folders_under(folder):
        above = inner.split("/")
        for file in files:
            name = BidsName.of(file)
            if not file.endswith(VOLUMES):
                continue
            path = "/".join(part for part in ("derivatives", folder.name, *above, file) if part)
            if not above[0].startswith("sub-"):
                misplaced = "NIfTI files under derivatives are not in a folder NAME/sub-ID"
                skipped.add(f"{misplaced} and are skipped", path)
            elif file.startswith("sub-") and name.suffix in suffixes:
                session_of(above, name, f"{root}/{path}")
                maps.append(LabelMap(path, name))
            else:
                kinds = " or ".join(f"*_{suffix}" for suffix in suffixes)
                skipped.add(f"NIfTI files of {folder.name} are not label maps {kinds} and are skipped", path)
    return maps


def pair(
    root: Path, found: Derivative | None, images: Mapping[str, BidsName], label_of: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """Path of an image -> path of its label map; and notes on label maps without an image.

    images    path -> name, of all selected images
    label_of  suffixes of the images of label maps whose names give none (empty: the only image of the scan)

    Raises DataError if several label maps match one image.
    """
    if found is None:
        return {}, []
    of_scan: dict[tuple[str, ...], list[LabelMap]] = {}
    for one in found.maps:
        of_scan.setdefault(one.name.scan, []).append(one)
    siblings: dict[tuple[str, ...], set[str]] = {}
    for name in images.values():
        siblings.setdefault(name.scan, set()).add(name.suffix)
    pairs: dict[str, str] = {}
    used = set[str]()
    for path, name in images.items():
        plain = name.suffix in label_of if label_of else len(siblings[name.scan]) == 1
        suffixes = (name.suffix, None) if plain else (name.suffix,)
        fitting = [one for one in of_scan.get(name.scan, ()) if one.of in suffixes]
        exact = [one for one in fitting if found.wanted and not one.extra_pieces(found.wanted)]
        chosen = exact if len(exact) == 1 else fitting
        if len(chosen) > 1:
            problem = f"has {len(chosen)} label maps in {found.folder.name}: {_kinds(chosen)}"
            remedy = "choose one with label=[...], or none with derivative=none"
            raise DataError(root / path, problem, remedy)
        used |= {one.path for one in fitting}
        if chosen:
            pairs[path] = chosen[0].path
    return pairs, _unpaired(found, [one for one in found.maps if one.path not in used], siblings)


def _unpaired(
    found: Derivative, maps: Sequence[LabelMap], siblings: Mapping[tuple[str, ...], set[str]]
) -> list[str]:
    """Why label maps have no selected image."""
    reasons: dict[str, list[str]] = {}
    for one in maps:
        suffixes = siblings.get(one.name.scan)
        if suffixes and one.of is None:
            why = f"may belong to any of {', '.join(sorted(suffixes))}; choose with label_of=[...]"
        elif suffixes and one.of == one.name.entities.get("space"):
            why = f"are in another space, {one.of}"
        else:
            why = "have no image"
        reasons.setdefault(why, []).append(one.path)
    what = f"label maps of {found.folder.name}"
    return [naming(f"{len(paths)} {what} {why}", paths) for why, paths in sorted(reasons.items())]


def class_names(found: Derivative | None, used: Iterable[str]) -> tuple[dict[int, str], list[str]]:
    """Class -> name from the ..._dseg.tsv (columns index, name) of the used label maps; and notes.

    Raises DataError for a table without classes.
    """
    paths = set(used)
    maps = [one for one in found.maps if one.path in paths and one.name.suffix == "dseg"] if found else []
    if found is None or not maps:
        return {}, []
    tables = {path: BidsName.of(path.name) for path in sorted(found.folder.glob("*dseg.tsv"))}
    if len(tables) > 1:
        keys = ("desc", "seg", "atlas", "label")
        needed = {frozenset(item for item in one.name.entities.items() if item[0] in keys) for one in maps}
        tables = {path: name for path, name in tables.items() if {frozenset(name.entities.items())} == needed}
        if len(tables) != 1:
            unmatched = f"no table *dseg.tsv of {found.folder.name} matches the names of the label maps"
            return {}, [f"{unmatched}, so classes have no names"]
    return {number: name for path in tables for number, name in _classes(path).items()}, []


def _classes(path: Path) -> dict[int, str]:
    columns, rows = read_rows(path)
    if not {"index", "name"} <= set(columns):
        raise DataError(f"{path}:1", f"the columns index and name are needed, found: {columns}")
    names = {0: "background"}
    for line, row in rows.items():
        index = row[columns.index("index")]
        try:
            names[int(index)] = row[columns.index("name")]
        except ValueError:
            raise DataError(f"{path}:{line}", f"index = {index!r}: an integer is needed") from None
    return names


def _kinds(maps: Iterable[LabelMap]) -> str:
    return ", ".join(sorted({_listed(one.pieces) for one in maps}))


def _listed(pieces: Iterable[str]) -> str:
    return f"[{', '.join(sorted(pieces, key=lambda piece: ('-' not in piece, piece)))}]"

"""Guess which part of a path is the patient, the session and the modality of a scan.

A guess for a person to confirm: sources read columns or patterns, never these.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

from medcl3d.datasets.name_words import (
    date_in,
    has_label_word,
    identifying_words,
    is_patient_name,
    kind_of_name,
    modality_in,
    names_label_maps,
    session_in,
    without_session,
)
from medcl3d.datasets.scan_ids import default_ids

MANY_IDS = 6  # below one folder and no other: the folder is a cohort, not a patient


@lru_cache(maxsize=65536)
def parts_of(path: str) -> tuple[str, ...]:
    """The names of the folders of a path, and of its file."""
    return PurePosixPath(path).parts


@dataclass(frozen=True)
class PathRoles:
    """The guessed columns of one scan.

    depth  number of folders above the folder that is the patient; None if the file's name is
    """

    patient: str
    session: str
    modality: str
    depth: int | None

    @property
    def date(self) -> str:
        """The session if it is a date, else ""."""
        return self.session if date_in(self.session) else ""


def stem_of(path: str) -> str:
    """The name of a file without .nii.gz, or of a folder of DICOM slices."""
    return re.sub(r"\.nii(\.gz)?$", "", path.rpartition("/")[2], flags=re.IGNORECASE)


def named_as_label_maps(paths: Sequence[str]) -> set[str]:
    """The paths whose file or folder names mean label maps.

    Words that all paths share distinguish nothing: in a folder `segmentation study` not every file is one.
    """
    folders = {path: parts_of(path)[:-1] for path in paths}
    shared = set.intersection(*(set(parts) for parts in folders.values())) if len(folders) > 1 else set()
    found = set()
    for path in paths:
        of_folder = any(names_label_maps(name) for name in folders[path] if name not in shared)
        if of_folder or has_label_word(stem_of(path)):
            found.add(path)
    return found


def guess_roles(paths: Sequence[str]) -> dict[str, PathRoles]:
    """Path -> its guessed columns, from the names of all folders and files together.

    A folder is the patient if it is named so (``sub-01``, ``Patient 3``), or if names below it do not look
    like ids themselves. Without such a folder the patient is the beginning of the file's name, up to the
    first number that varies (``STS_001_CT`` -> ``STS_001``).
    """
    depths: dict[str, int | None] = {}
    _find_patients(list(paths), 0, depths)
    ids = _ids_of_names([path for path in paths if depths[path] is None])
    return {path: _roles(path, depths[path], ids.get(path, "")) for path in paths}


def _roles(path: str, depth: int | None, own: str) -> PathRoles:
    *folders, _ = parts_of(path)
    stem = stem_of(path)
    patient = folders[depth] if depth is not None else own
    inner = folders[depth + 1 :] if depth is not None else folders
    names = [*inner, stem]
    session = next(filter(None, map(session_in, names)), "")
    if not session and depth is not None:
        session = next((name for name in inner if kind_of_name(name) == "name"), "")
    modality = next(filter(None, map(modality_in, (stem, *reversed(folders)))), "")
    return PathRoles(patient, "" if session == patient else session, modality, depth)


def _find_patients(paths: list[str], depth: int, depths: dict[str, int | None]) -> None:
    """Find the depth of the patient's folder of paths that share the folders above `depth`."""
    children: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        parts = parts_of(path)
        if len(parts) - 1 == depth:
            depths[path] = None if _bare(stem_of(path)) else _last_session(parts)
        else:
            children[parts[depth]].append(path)
    named = {name: inner for name, inner in children.items() if kind_of_name(name) == "name"}
    are_patients = _are_patients(named, depth)
    for name, inner in children.items():
        if name in named and (are_patients or is_patient_name(name)):
            depths.update(dict.fromkeys(inner, depth))
        else:
            _find_patients(inner, depth + 1, depths)


def _last_session(parts: Sequence[str]) -> int | None:
    """The depth of the last folder that is a session: the patient, if nothing else is."""
    return max((at for at, name in enumerate(parts[:-1]) if kind_of_name(name) == "session"), default=None)


def _are_patients(folders: Mapping[str, list[str]], depth: int) -> bool:
    """Whether folders of one level are patients, not cohorts of patients.

    In doubt they are patients: one person under two ids leaks test data, two people under one id do not.
    """
    if not folders:
        return False
    below = {name: _ids_below(inner, depth + 1) for name, inner in folders.items()}
    if any(is_patient_name(text) for ids in below.values() for text in ids):
        return False
    if sum(map(is_patient_name, folders)) > len(folders) / 2:
        return True
    counts = Counter(text for ids in below.values() for text in ids)
    own = {name: [text for text in ids if counts[text] == 1] for name, ids in below.items()}
    num_cohorts = sum(_is_cohort(name, ids, folders[name], depth + 1) for name, ids in own.items())
    if len(folders) == 1 and not _has_number(next(iter(folders))):
        return False
    return num_cohorts < len(folders) / 2


def _is_cohort(name: str, ids: Sequence[str], paths: Sequence[str], depth: int) -> bool:
    """Whether a folder holds several patients, by the ids below it that no other folder has."""
    if len(ids) < 2 or len(ids) >= MANY_IDS:
        return len(ids) >= MANY_IDS
    if _has_number(name):
        return False
    are_folders = any(kind_of_name(part) == "name" for path in paths for part in _folders(path)[depth:])
    return are_folders or bool(modality_in(name)) or sum(map(_has_number, ids)) > len(ids) / 2


def _has_number(text: str) -> bool:
    return any(character.isdigit() for character in text)


def _folders(path: str) -> tuple[str, ...]:
    return parts_of(path)[:-1]


def _ids_below(paths: Sequence[str], depth: int) -> set[str]:
    """What may be ids below a folder: names of the next folders that may be ids, else names of files."""
    found = set()
    for path in paths:
        *folders, _ = parts_of(path)[depth:]
        name = next((one for one in folders if kind_of_name(one) == "name"), None)
        text = stem_of(path) if name is None else name
        if not has_label_word(text) and identifying_words(without_session(text)):
            found.add(_bare(text) if name is None else text)
    return found


@lru_cache(maxsize=65536)
def _bare(stem: str) -> str:
    """A file name without its session, modality and words without a meaning."""
    kept = [part for part, is_id in _parts(without_session(stem)) if is_id]
    return " ".join(kept).casefold()


def _parts(stem: str) -> list[tuple[str, bool]]:
    """The pieces of a file name between separators, and whether each may belong to an id."""
    pieces = [piece for piece in re.split(r"[\W_]+", stem) if piece]
    return [(piece, bool(identifying_words(piece)) and not modality_in(piece)) for piece in pieces]


def _ids_of_names(paths: Sequence[str]) -> dict[str, str]:
    """Path -> the patient, from the names of files: up to the first number that varies in a folder."""
    groups: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        groups[path.rpartition("/")[0]].append(path)
    alone = [group[0] for group in groups.values() if len(group) == 1]
    found: dict[str, str] = {}
    for group in (*(group for group in groups.values() if len(group) > 1), alone):
        stems = {path: without_session(stem_of(path)) for path in group}
        pieces = {path: [part for part, is_id in _parts(stem) if is_id] for path, stem in stems.items()}
        most = max(map(len, pieces.values()), default=0)
        varies = [len({tuple(p[at : at + 1]) for p in pieces.values()}) > 1 for at in range(most)]
        for path, parts in pieces.items():
            found[path] = _id_of(stems[path], parts, varies) or stem_of(path)
    fallback = default_ids([path for path in paths if not found[path]])
    return found | dict(zip([path for path in paths if not found[path]], fallback, strict=True))


def _id_of(stem: str, parts: Sequence[str], varies: Sequence[bool]) -> str:
    """The beginning of a name up to its first number that varies, else its last number, else all of it."""
    numbered = [at for at, part in enumerate(parts) if _has_number(part)]
    end = next((at for at in numbered if varies[at]), numbered[-1] if numbered else len(parts) - 1)
    kept = set(parts[: end + 1])
    # With the separators of the name, which distinguish 1_12 from 11_2.
    made, open_ = "", ""
    for piece in re.split(r"([\W_]+)", stem):
        if re.fullmatch(r"[\W_]*", piece):
            open_ = piece if made else ""
        elif piece in kept and len(re.split(r"[\W_]+", made)) <= end + 1:
            made, open_ = f"{made}{open_}{piece}", ""
    return made

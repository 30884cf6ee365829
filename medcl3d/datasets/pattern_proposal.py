"""Propose a pattern of paths for the source `folder`, from the names of folders and files."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medcl3d.core.errors import ConfigError, DataError
from medcl3d.datasets.name_words import MODALITY_WORDS, plain
from medcl3d.datasets.path_pattern import PathPattern
from medcl3d.datasets.path_roles import PathRoles, guess_roles, named_as_label_maps, parts_of
from medcl3d.io.walk import volumes_under

MAX_CANDIDATES = 40
MAX_COMPARED = 200  # images that all candidates are tried on; the best is then tried on all
SHOWN = 3


@dataclass(frozen=True)
class _Proposal:
    """A pattern of images, a pattern of their label maps ("" if none), and what they match."""

    pattern: str
    label: str = ""
    rows: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    num_labels: int = 0


def propose_pattern(root: Path) -> str:
    """The remedy for a missing pattern: one that fits most files, with the scans that it would match.

    DataError if the root is not a folder.
    """
    volumes, _ = volumes_under(root)
    paths = [path.as_posix() for path in volumes]
    table = f"or write a table with `medcl3d init {shlex.quote(str(root))}`"
    example = f"write {{patient}} in place of the patient's id, as pattern={{patient}}/*.nii.gz, {table}"
    best = _best(paths) if paths else None
    if best is None:
        return f"no pattern fits half of its {len(paths)} NIfTI files; {example}" if paths else example
    words = f"'pattern={best.pattern}'" + (f" 'label={best.label}'" if best.label else "")
    shown = [
        f"{path} as " + ", ".join(f"{name} {text!r}" for name, text in columns.items())
        for path, columns in [*best.rows.items()][:SHOWN]
    ]
    labels = f" and {best.num_labels} label maps" if best.label else ""
    count = f"{len(best.rows)} scans{labels} of {len(paths)} NIfTI files"
    return f"{words} matches {count}: {'; '.join(shown)}. Correct it if it is wrong, {table}"


def _best(paths: Sequence[str]) -> _Proposal | None:
    """The candidate that reads most images and no label map as an image; None if none reads half of them."""
    are_labels, roles = named_as_label_maps(paths), guess_roles(paths)
    images = [path for path in paths if path not in are_labels]
    labels = sorted(are_labels)
    some, of_some, found = _every(images), _every(labels), []
    for pattern in _candidates(some, roles):
        for label in (*_candidates(of_some, roles), ""):
            proposal = _matched(pattern, label, some, of_some, roles)
            if proposal is not None and 2 * len(proposal.rows) >= len(some):
                found.append(proposal)
    found.sort(key=lambda one: (len(one.rows), one.num_labels, len(one.pattern)), reverse=True)
    of_all = (_matched(one.pattern, one.label, images, labels, roles) for one in found)
    return next((one for one in of_all if one is not None and 2 * len(one.rows) >= len(images)), None)


def _every(paths: Sequence[str]) -> list[str]:
    """Up to `MAX_COMPARED` of the paths, from all parts of the list."""
    return list(paths[:: -(-len(paths) // MAX_COMPARED) or 1])


def _matched(
    pattern: str, label: str, images: Sequence[str], labels: Sequence[str], roles: Mapping[str, PathRoles]
) -> _Proposal | None:
    """What a candidate matches; None if it is invalid, takes label maps for images, or other patients."""
    try:
        of_images = PathPattern("pattern", pattern)
        of_labels = PathPattern("label", label) if label else None
        if of_labels and not set(of_labels.names) <= set(of_images.names):
            return None
        are_labels = {p for p in (*images, *labels) if of_labels and of_labels.read(Path(), p) is not None}
        rows = {path: of_images.read(Path(), path) for path in (*images, *labels) if path not in are_labels}
    except (ConfigError, DataError):
        return None
    read = {path: columns for path, columns in rows.items() if columns is not None}
    if are_labels & set(images) or set(read) & set(labels):
        return None
    patients = {(columns.get("patient", ""), roles[path].patient) for path, columns in read.items()}
    if any(len({pair[at] for pair in patients}) < len(patients) for at in (0, 1)):
        return None  # it joins or splits them
    names = of_labels.names if of_labels else []
    images_of = {tuple(columns[name] for name in names) for columns in read.values()}
    keys = [tuple((of_labels.read(Path(), p) or {}).values()) for p in are_labels if of_labels]
    if len(set(keys)) < len(keys):
        return None  # several label maps of the same images
    num = sum(key in images_of for key in keys)
    return _Proposal(pattern, label, read, num)


def _candidates(paths: Sequence[str], roles: Mapping[str, PathRoles]) -> list[str]:
    """Patterns made of single paths, the most frequent first."""
    shared = [
        {parts_of(path)[at] for path in paths if len(parts_of(path)) > at + 1}
        for at in range(max((len(parts_of(path)) for path in paths), default=0))
    ]
    constant = [next(iter(names)) if len(names) == 1 else "" for names in shared]
    counts = Counter(text for path in paths for text in _of_path(path, roles[path], constant))
    return [text for text, _ in counts.most_common(MAX_CANDIDATES)]


def _of_path(path: str, roles: PathRoles, constant: Sequence[str]) -> Iterator[str]:
    """Patterns that match one path, from specific to general."""
    *folders, name = parts_of(path)
    made = []
    for at, folder in enumerate(folders):
        if folder == roles.patient and at == roles.depth:
            made.append("{patient}")
        elif roles.session and folder == roles.session:
            made.append("{session}")
        else:
            made.append(folder if folder == constant[at] else "*")
    end = ".nii.gz" if name.endswith(".nii.gz") else ".nii"
    above = ["/".join([*made, ""])]
    if "*" in made:
        last = max(at for at, text in enumerate(made) if text == "*")
        first = min(at for at, text in enumerate(made) if text == "*")
        if all(text == "*" for text in made[first : last + 1]):
            above.append("/".join([*made[:first], "**", *made[last + 1 :], ""]))
    for folder in above:
        for stem in _of_stem(name.removesuffix(end), roles):
            yield f"{folder}{stem}{end}"


def _of_stem(stem: str, roles: PathRoles) -> Iterator[str]:
    """Patterns of a file's name: as it is, with its columns in braces, and without the rest."""
    if roles.depth is not None:
        yield stem
        yield "*"
    texts = {"patient": roles.patient, "session": roles.session}
    made = stem
    for column, text in texts.items():
        if text:
            made = re.sub(rf"(?<![^\W_]){re.escape(text)}(?![^\W_])", f"{{{column}}}", made, count=1)
    pieces = re.split(r"(\{\w+\}|[\W_]+)", made)
    named, has_modality = [], False
    for piece in pieces:
        is_first = plain(piece) in MODALITY_WORDS and not has_modality
        has_modality |= is_first
        named.append("{modality}" if is_first else piece)
    kept = [piece if re.fullmatch(r"\{\w+\}|[\W_]*", piece) else "*" for piece in named]
    yield "".join(named)
    yield "".join(kept)
    prefix = re.fullmatch(r"(.*\D)\d+", roles.patient)
    if prefix and roles.depth is None:  # STS_001_CT: STS_{patient}_{modality}
        yield "".join(named).replace("{patient}", f"{prefix[1]}{{patient}}", 1)
        yield "".join(kept).replace("{patient}", f"{prefix[1]}{{patient}}", 1)
    if "{patient}" in made:
        before, _, after = made.partition("{patient}")
        yield f"{before}{{patient}}{after[:1]}*" if after else f"{before}{{patient}}"

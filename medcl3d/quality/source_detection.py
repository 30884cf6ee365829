"""Source detection for `check`: a store, a collection that a source reads, or plain NIfTI files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from medcl3d.config.choices import choice_of
from medcl3d.config.field_types import STRICT, Choice, Fraction
from medcl3d.config.loading import parse
from medcl3d.config.overrides import Schema
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.datasets.manifest import Manifest
from medcl3d.datasets.sources import SOURCES
from medcl3d.datasets.sources.csv import MANIFESTS
from medcl3d.io.walk import volumes_under
from medcl3d.preprocessing.options import option_schemas, refuse_unknown
from medcl3d.preprocessing.read_scan import Channels, Nonfinite


@validated(frozen=True, kw_only=True, config=STRICT)
class CheckOptions:
    """How strict validation is.

    nonfinite, channels  as in `prepare`
    max_bad_fraction     of the scans that may have a fault before the exit code is not 0
    workers              processes; 0: one per processor, up to 8
    """

    nonfinite: Nonfinite = "error"
    channels: Channels = "error"
    max_bad_fraction: Fraction = 0.0
    workers: Annotated[int, Field(ge=0, le=256)] = 0


@validated(frozen=True, config=STRICT)
class _SourceChoice:
    source: choice_of(SOURCES)  # type: ignore[valid-type]


@validated(frozen=True, kw_only=True, config=STRICT)
class _FilesOptions:
    """Options of a folder of plain files: whether links may lead out of it."""

    allow_outside: bool = False


def split_options(target: Path, given: dict[str, Any]) -> tuple[Choice | None, CheckOptions]:
    """The source (None: a store) with its fields, and the options. ConfigError for an unknown key."""
    known = list(CheckOptions.__dataclass_fields__)
    options = parse({k: given.pop(k) for k in known if k in given}, CheckOptions, "check")
    name = given.pop("source", None) or detect_source(target)
    if name in ("", "files"):
        unknown = [key for key in given if name == "" or key != "allow_outside"]
        if unknown:
            remedy = "choose its source, as source=folder"
            raise ConfigError(unknown[0], None, "unknown option", remedy, place="check")
        return (None if name == "" else Choice("files", vars(parse(given, _FilesOptions, "check")))), options
    if name in SOURCES.names():
        refuse_unknown(given, str(name), ["source", *known], "check")
    return parse({"source": {str(name): given}}, _SourceChoice, "check").source, options


def option_schemas_at(target: Path, options: Sequence[str]) -> list[Schema]:
    """JSON Schemas of the options for `target`, by its source, which options may name as ``source=NAME``."""
    named = [text.removeprefix("source=") for text in options if text.startswith("source=")]
    return option_schemas(named[-1] if named else detect_source(target), CheckOptions)


def detect_source(target: Path) -> str:
    """The source of a path: "" for a store, "files" for a folder of plain files."""
    if (target / "prepared.json").exists():
        return ""
    if target.is_file():
        return "csv" if target.suffix.lower() in (".csv", ".tsv", ".json") else "files"
    if (target / "dataset.json").exists():
        text = (target / "dataset.json").read_text(encoding="utf-8", errors="replace")
        return "nnunet" if '"channel_names"' in text else "decathlon"
    if any((target / name).exists() for name in MANIFESTS):
        return "csv"
    return "bids" if any(target.glob("sub-*")) else "files"


def read_collection(target: Path, choice: Choice) -> Manifest:
    """The collection, as its source reads it; nothing is written. ConfigError, DataError."""
    if choice.name != "files":
        if choice.name in ("medmnist", "simulated"):
            problem, remedy = f"source {choice.name} writes new files", "prepare it, and check the output"
            raise ConfigError(problem=problem, remedy=remedy, place="check")
        # None: its series are validated but not written.
        made: Manifest = SOURCES.build(choice, target, *([None] if choice.name == "dicom" else []))
        return made
    if target.is_file():
        return Manifest.of(pd.DataFrame({"path": [target.name]}), target.parent)
    volumes, unread = volumes_under(target)
    if not volumes:
        others = "".join(f"; {note}" for note in unread)
        problem = f"not a store, without a manifest or NIfTI files{others}"
        raise DataError(target, problem, "use source=dicom for DICOM files")
    table = pd.DataFrame({"path": [path.as_posix() for path in volumes]})
    found = Manifest.of(table, target, outside=bool(choice.fields["allow_outside"]))
    return replace(found, notes=(*found.notes, *unread))

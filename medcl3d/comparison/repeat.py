"""What repeats a comparison: commits, versions and machines of all its runs, and configurations with their commands."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from medcl3d.comparison.analysis import Analysis
from medcl3d.comparison.config import CompareConfig
from medcl3d.comparison.launch import command_of, read_json
from medcl3d.comparison.plan import Run
from medcl3d.config import plain

NAMES = {"commit": "commit of medcl3d", "python": "Python", "versions": "packages", "data": "hash of the scans"}
"""What provenance.json may hold -> what a report calls it, in this order; what is not named here follows under its own name."""
LEFT_OUT = ("kind", "command", "dirty", "body", "manifest", "split")
"""What differs from run to run; what is said beside the commit; and hashes that stay in run folders, since whoever has that of a
short column, as the sex of ten patients, can try all values. That they are alike is checked before there is a report."""
UNKNOWN = "not noted"


@dataclass(frozen=True)
class Made:
    """One thing that runs noted of how they were made: its name, and each value with the number of runs that noted it, most first."""

    name: str
    values: tuple[tuple[str, int], ...]


def made(runs: Sequence[Run]) -> list[Made]:
    """What provenance.json says of all these runs: commits, versions and data, then whatever else it holds, as the device."""
    found = [read_json(run.folder / "provenance.json") for run in runs]
    others = sorted({key for provenance in found for key in provenance} - {*NAMES, *LEFT_OUT})
    counts = {key: Counter(_words(key, provenance) for provenance in found) for key in (*NAMES, *others)}
    return [Made(NAMES.get(key, key), tuple(of.most_common())) for key, of in counts.items() if set(of) != {UNKNOWN}]


def _words(key: str, provenance: Mapping[str, Any]) -> str:
    value = provenance.get(key)
    if value is None or value == {}:
        return UNKNOWN
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    changed = ", with changes that are in no commit" if key == "commit" and provenance.get("dirty") else ""
    return (value if isinstance(value, str) else json.dumps(value)) + changed


@dataclass(frozen=True)
class Document:
    """A folded text."""

    title: str
    text: str


def documents(analysis: Analysis, runs: Sequence[Run], config: CompareConfig) -> list[Document]:
    """The comparison's configuration, and of the first replicate and cell that of every run with its command."""
    found = [Document("The comparison", _yaml(plain(config)))]
    for run in runs:
        if run.shown and run.seed == analysis.replicates[0] and run.cell in ((), analysis.cells[0]):
            text = f"{shlex.join(['python', *command_of(run)])}\n\n{_yaml(dict(run.planned))}"
            found.append(Document(f"{run}: its command and its full configuration", text))
    return found


def _yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)

"""Reproducibility section of a report: commits, versions and devices, configurations and commands."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from medcl3d.comparison.analysis.analysis import Analysis
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.runs import Run
from medcl3d.comparison.report.gallery import first_runs
from medcl3d.comparison.run.launch import command_of
from medcl3d.config.plain import plain
from medcl3d.io.json_file import read_record
from medcl3d.training.run_record import EARLIER, START_HASH

NAMES = {
    "commit": "commit of medcl3d",
    "python": "Python",
    "versions": "packages",
    "data": "hash of the scans",
}
"""Key of provenance.json -> its name in a report, in this order; other keys follow under their own names."""
LEFT_OUT = ("kind", "command", "dirty", "body", "manifest", "split", START_HASH, EARLIER)
"""Keys that differ from run to run or are shown with the commit, environments before a resume, and hashes
that stay in run folders: the hash of a short column, as the sex of ten patients, could be inverted by trying
all values. Their equality is checked before the report."""
UNKNOWN = "not recorded"


@dataclass(frozen=True)
class ProvenanceEntry:
    """One provenance entry: its name, and its values with their numbers of runs, most frequent first."""

    name: str
    values: tuple[tuple[str, int], ...]


def provenance_entries(runs: Sequence[Run]) -> list[ProvenanceEntry]:
    """Provenance entries of all these runs: commits, versions and data, then others such as the device."""
    found = [read_record(run.folder / "provenance.json") for run in runs]
    others = sorted({key for provenance in found for key in provenance} - {*NAMES, *LEFT_OUT})
    counts = {key: Counter(_words(key, provenance) for provenance in found) for key in (*NAMES, *others)}
    known = {key: tuple(of.most_common()) for key, of in counts.items() if set(of) != {UNKNOWN}}
    return [ProvenanceEntry(NAMES.get(key, key), values) for key, values in known.items()]


def _words(key: str, provenance: Mapping[str, Any]) -> str:
    value = provenance.get(key)
    if value is None or value == {}:
        return UNKNOWN
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    changed = ", with uncommitted changes" if key == "commit" and provenance.get("dirty") else ""
    return (value if isinstance(value, str) else json.dumps(value)) + changed


@dataclass(frozen=True)
class Document:
    """A collapsible text."""

    title: str
    text: str


def documents(analysis: Analysis, runs: Sequence[Run], config: CompareConfig) -> list[Document]:
    """Configurations of the comparison and of the runs of the first replicate and cell, with commands."""
    found = [Document("The comparison", _yaml(plain(config)))]
    for run in first_runs(analysis, runs):
        if run.cell in ((), analysis.cells[0]):
            text = f"{shlex.join(['python', *command_of(run)])}\n\n{_yaml(dict(run.planned))}"
            found.append(Document(f"{run}: its command and its full configuration", text))
    return found


def _yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)

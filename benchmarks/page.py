"""The page of benchmark results: one section per benchmark, each with its environment."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.goals import TITLE as GOALS
from benchmarks.goals import goals_of
from benchmarks.measure import Table
from medcl3d.io.atomic import write_text

CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
COMMAND = "medcl3d benchmark --out docs/results/performance.md"
HEAD = f"# Performance\n\nWritten by `{COMMAND}`. Brackets: 95% interval."
SECTION = "\n## "


def update(path: Path, tables: Sequence[Table], environment: str) -> None:
    """Write the sections of tables to a page (.md) or a file of numbers (.json); other sections are kept."""
    existing = path.read_text() if path.exists() else ""
    if path.suffix == ".md":
        old = {part.split("\n")[0]: part.rstrip() for part in existing.split(SECTION)[1:]}
        new = {table.title: _section(table, environment) for table in tables}
        sections = old | new
        first = [sections.pop(GOALS)] if GOALS in sections else []
        parts = "".join(f"{SECTION}{part}\n" for part in (*first, *sections.values()))
        write_text(path, HEAD + "\n" + parts)
    else:
        found = {table["title"]: table for table in json.loads(existing)["tables"]} if existing else {}
        found |= {table.title: {**asdict(table), "machine": environment} for table in tables}
        write_text(path, json.dumps({"tables": list(found.values())}, indent=2) + "\n")


def update_goals(page: Path) -> None:
    """Write the section of goals from the file of numbers beside the page."""
    update(page, [goals_of(page.with_suffix(".json"))], "that of each section")


def _section(table: Table, environment: str) -> str:
    lines = [table.columns, ("---",) * len(table.columns), *table.rows]
    drawn = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table.title}\n\n{drawn}\n\n{table.note}\n\nEnvironment: {environment}."


def as_rich(table: Table) -> Any:
    """The table for a terminal."""
    from rich.table import Table as RichTable

    drawn = RichTable(title=table.title)
    for column in table.columns:
        drawn.add_column(column)
    for row in table.rows:
        drawn.add_row(*row)
    return drawn


def describe_environment() -> str:
    """The environment of the results: cores, processor flags, device, versions, load. No names."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = Path("/proc/cpuinfo")
    known = (
        next(
            (
                line.split(":")[1].split()
                for line in info.read_text().splitlines()
                if line.startswith(("flags", "Features"))
            ),
            [],
        )
        if info.exists()
        else []
    )
    flags = [flag for flag in CPU_FLAGS if flag in known]
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchio", "numpy"))
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    python = ".".join(str(part) for part in sys.version_info[:3])
    return (
        f"{cores} cores, {platform.machine()}{f' ({chr(32).join(flags)})' if flags else ''}{device}; "
        f"Python {python}, {packages}{load}"
    )

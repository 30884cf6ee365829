"""`medcl3d suggest`: what the scans of a store allow, as a table and as a comparison to run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from medcl3d.comparison.suggest.suggestion import Suggestion, comparison_of, suggestion_for, trains_on_target
from medcl3d.core.errors import ConfigError, UserError
from medcl3d.io.atomic import write_text
from medcl3d.io.disk_space import require_writable
from medcl3d.io.progress import titled_bar
from medcl3d.objectives import objective_type
from medcl3d.pairs import needs_features
from medcl3d.pretraining.pair_audit import FEW_BATCHES, audit_of
from medcl3d.pretraining.pair_counts import PairAudit
from medcl3d.pretraining.pair_labels import STRUCTURES, labels_of
from medcl3d.pretraining.usable_pairs import PairsOnStore, class_columns, combinators

WIDTH = 110
"""Columns of the table if the output is not a terminal."""
Audits = Mapping[str, PairAudit]


def suggest(
    root: Path, out: Path | None = None, *, audit: bool = False, size: str | None = None
) -> Suggestion:
    """Print what the scans of a store allow, and write a comparison of the usable pair strategies.

    out    a .yaml file that does not exist yet
    audit  also measure the purity of the pairs, by label maps or by the first column with classes
    size   `mine` for a GPU or `mine_small` for a CPU (default: by whether there is a GPU)
    """
    if out is not None:
        if out.suffix not in (".yaml", ".yml"):
            raise ConfigError(f"--out {out}: a comparison is a YAML file; use a name that ends in .yaml")
        if out.exists():
            raise ConfigError(f"--out {out}: the file exists; delete it, or choose another name")
        require_writable(out.parent, "--out")
    found = suggestion_for(root, size)
    by = label_of(found) if audit else None
    audits = audits_of(found, by) if by else {}
    text = comparison_of(found, f"medcl3d suggest {shlex.quote(str(root))}") if out is not None else ""
    console = Console(highlight=False, markup=False)
    console.width = console.width if console.is_terminal else WIDTH
    show(found, audits, by, console)
    if out is None:
        console.print(f"`medcl3d suggest {root} --out compare.yaml` writes a comparison", soft_wrap=True)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
        console.print(f"{out}: `medcl3d compare {out} --check` counts its runs", soft_wrap=True)
    return found


def label_of(found: Suggestion) -> str:
    """What an audit compares items by. ConfigError if there is nothing."""
    rows = found.usable[0].parts.scans.rows if found.usable and found.usable[0].parts else ()
    if any(found.store.has_label(int(row)) for row in rows):
        return STRUCTURES
    if columns := class_columns(found.store.collection):
        return columns[0]
    problem = "the training scans have no label map and no column with classes"
    raise ConfigError(problem=problem, remedy="leave it out, or add one of them", place="--audit")


def audits_of(found: Suggestion, by: str) -> dict[str, PairAudit]:
    """Strategy -> audit of its first batches, for usable strategies whose pairs need no encoder."""
    audits: dict[str, PairAudit] = {}
    with titled_bar("auditing pairs", len(found.usable)) as advance:
        for one in found.usable:
            advance(f"auditing {one.name}")
            assert one.parts is not None
            if not needs_features(one.parts.strategy):
                try:
                    audits[one.name] = audit_of(one.parts, labels_of(one.parts, by), None, FEW_BATCHES)
                except UserError:  # no item of the first batches has a label
                    continue
    return audits


def show(found: Suggestion, audits: Audits, by: str | None, console: Console) -> None:
    """Print the scans, the patch size, the strategies and the measurements."""
    say = partial(console.print, soft_wrap=True)
    table = found.store.collection.table
    spacing = np.median(found.store.collection.spacings, axis=0)
    mm = " x ".join(f"{edge:.0f}" for edge in np.array(found.patch_size) * spacing)
    size = {"mine": "for a GPU", "mine_small": "for a CPU"}[found.size]
    say(f"{found.store.root}: {len(table)} scans of {table['patient'].nunique()} patients")
    say(f"patch size {' x '.join(map(str, found.patch_size))} voxels, {mm} mm, {size}")
    say(f"\nusable: {len(found.usable)} of {len(found.pairs)} pair strategies")
    console.print(usable_table(found, audits, by))
    if by is not None:
        say(about_audit(audits, by))
    if lacking := [one for one in found.pairs if one.parts is None]:
        say("not usable on these scans")
        console.print(lacking_table(lacking))
    say(f"combinators of the above: {', '.join(combinators())}\n")
    if by is None and any(one.target is not None for one in found.measurements):
        say("`--audit` adds, before any training, how many of the pairs join the same structure or class")
        say("(`medcl3d audit CONFIG` measures one strategy in detail)\n")
    say("to measure encoders:" if found.measurements else "nothing to measure encoders by")
    if found.measurements:
        console.print(measurement_table(found))


def about_audit(audits: Audits, by: str) -> str:
    """The meaning of the columns of an audit."""
    what = "structure" if by == STRUCTURES else by
    chance = [audit.chance.mean for audit in audits.values() if audit.chance is not None]
    of_chance = f" ({np.mean(chance):.3f} for random pairs of patients)" if chance else ""
    return (
        f"purity, false: shares of the positive and of the negative weight that join the same {what}"
        f"{of_chance}.\nEmpty: the pairs depend on features; use `medcl3d audit CONFIG --encoder RUN`.\n"
    )


def measurement_table(found: Suggestion) -> Table:
    """One row per measurement; the first is that of the comparison."""
    table = Table("command", "measurement", "metric", box=SIMPLE_HEAD)
    for one in found.measurements:
        table.add_row(one.command, one.words, one.metric)
    return table


def usable_table(found: Suggestion, audits: Audits, by: str | None) -> Table:
    """One row per usable strategy."""
    table = Table("pairs", "anchors", "objective", "transfer", box=SIMPLE_HEAD)
    if by is not None:
        table.add_column("purity", justify="right")
        table.add_column("false", justify="right")
    table.add_column("notes", ratio=1)
    for one in found.usable:
        assert one.parts is not None
        ((objective, _),) = one.fields["objective"].items()
        transfer = "all" if objective_type(objective).decodes else "encoder"
        audited = audits.get(one.name)
        shares = (audited.purity, audited.false_negatives) if audited else (None, None)
        columns = ["" if share is None else f"{share.mean:.3f}" for share in shares] if by else []
        notes = "; ".join(notes_on(one, found))
        table.add_row(one.name, str(len(one.parts.anchors.ids)), objective, transfer, *columns, notes)
    return table


def notes_on(one: PairsOnStore, found: Suggestion) -> list[str]:
    """Columns that a strategy uses, scans that it leaves out, warnings."""
    fields = [f"{name}: {value}" for name, value in one.fields["pairs"][one.name].items()]
    trains = found.measurements and trains_on_target(one, found.measurements[0])
    labels = ["trains on what is measured, so not in the comparison"] if trains else []
    return [text.replace("'", "") for text in fields] + one.notes + labels


def lacking_table(lacking: list[PairsOnStore]) -> Table:
    """One row per strategy that is not usable, with what it lacks."""
    table = Table("pairs", box=SIMPLE_HEAD)
    table.add_column("what it lacks", ratio=1)
    for one in lacking:
        table.add_row(one.name, one.problem)
    return table

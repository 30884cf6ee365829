"""`medcl3d init`: from a folder or a table of raw scans to a table, configurations and commands."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path

from medcl3d.io.atomic import write_text
from medcl3d.io.disk_space import require_writable
from medcl3d.proposal.configs import Plan, configurations
from medcl3d.proposal.description import describe
from medcl3d.proposal.measure import TEST_FRACTION, choose_measure, fraction_to_test, num_labelled
from medcl3d.proposal.raw_collection import RawCollection, read_raw
from medcl3d.proposal.scan_files import ras_grids
from medcl3d.proposal.sizes import Machine, choose_sizes

TABLE = "scans.csv"
NOT_MEASURED = (
    "no comparison: nothing measures an encoder yet. Give label maps (column label), classes (column class) "
    "or several scans per patient, and run this command again"
)


def init(
    target: Path, out: Path | None = None, *, force: bool = False, say: Callable[[str], None] = print
) -> dict[str, Path]:
    """Describe raw scans, write a table and configurations for them, and report the next commands.

    out    folder of the files (default: named after `target`, in the current folder)
    force  replace files that differ from what would be written; otherwise they are kept

    Returns the names and paths of the files. DataError: no scans; MachineError: the folder cannot be written.
    """
    raw = read_raw(target)
    grids = ras_grids(raw.grids)
    for line in describe(target, raw, grids):
        say(line)
    folder = Path(f"{_plain_name(target)}_plan") if out is None else out
    machine = Machine.here()
    plan = Plan(folder, raw.table, choose_sizes(grids, machine), machine, choose_measure(raw.table))
    files = configurations(plan)
    if raw.proposed:
        table = raw.table.assign(
            **{
                name: [str(target.resolve() / text) if text else "" for text in raw.table[name]]
                for name in ("path", "label")
                if name in raw.table
            }
        )
        files = {TABLE: table.to_csv(index=False, lineterminator="\n"), **files}
    _write(folder, files, force, say)
    if plan.measure is None:
        say(NOT_MEASURED)
    say("next, from this folder:")
    for line in _commands(target, raw, plan, files):
        say(f"  {line}")
    return {name: folder / name for name in files}


def _write(folder: Path, files: Mapping[str, str], force: bool, say: Callable[[str], None]) -> None:
    """Write files; those that exist with another content are kept unless `force`."""
    require_writable(folder, "--out")
    folder.mkdir(parents=True, exist_ok=True)
    written, same, kept = [], [], []
    for name, text in files.items():
        path = folder / name
        before = path.read_bytes() if path.is_file() else None
        if before == text.encode():
            same.append(name)
        elif before is not None and not force:
            kept.append(name)
        else:
            write_text(path, text)
            written.append(name)
    for names, what in ((written, "wrote"), (same, "unchanged")):
        if names:
            say(f"{what} in {folder}: {', '.join(names)}")
    if kept:
        say(f"kept in {folder}: {', '.join(kept)}, which differ from the proposal; --force replaces them")
    if TABLE in kept:
        again = shlex.join(["medcl3d", "init", str(folder / TABLE), "--out", str(folder)])
        say(f"`{again}` plans for the scans of the kept table")


def _commands(target: Path, raw: RawCollection, plan: Plan, files: Mapping[str, str]) -> list[str]:
    """The commands that follow, in order."""
    folder = plan.folder
    root = str(folder / TABLE if raw.proposed else target)
    options = list(raw.fields)
    if plan.sizes.spacing != "keep":
        options.append(f"spacing_mm={plan.sizes.spacing}")
    fraction = fraction_to_test(raw.table)
    has_split = "split" in raw.table and (raw.table["split"] != "").any()
    if fraction != TEST_FRACTION and not has_split:
        options.append(f"test_fraction={fraction}")
    is_segmentation = plan.measure is not None and plan.measure.command == "finetune"
    if is_segmentation and not has_split and num_labelled(raw.table) < raw.table["patient"].nunique():
        options.append("unlabelled=train")
    lines = [["prepare", raw.source, root, "--out", str(folder / "data"), *options]]
    lines += [["pretrain", str(folder / "pretrain.yaml")]]
    lines += [
        [name, str(folder / f"{name}.yaml")] for name in ("finetune", "evaluate") if f"{name}.yaml" in files
    ]
    if "compare.yaml" in files:
        lines += [["compare", str(folder / "compare.yaml"), *more] for more in (["--check"], [])]
    return [shlex.join(["medcl3d", *line]) for line in lines]


def _plain_name(target: Path) -> str:
    """The name of a file or folder in ASCII letters, digits, - and _, which no shell changes."""
    name = target.resolve().name
    name = name.rpartition(".")[0] if target.is_file() else name
    ascii_only = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_-]+", "_", ascii_only).strip("_") or "scans"

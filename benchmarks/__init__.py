"""Benchmarks of speed and memory.

All benchmarks except `prepare` use simulated scans. Rates of crops, pairs and views are per second of
processor time on one core, so that other load has little effect. Alternatives are measured in alternating
turns within one run, and ratios have intervals over these turns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.chunks import grad_cache
from benchmarks.collection import collection
from benchmarks.finished import Finished
from benchmarks.gpu import gpu
from benchmarks.inference import inference
from benchmarks.loss_peers import loss_peers
from benchmarks.losses import losses
from benchmarks.measure import Bench, Scale, Table
from benchmarks.memory import memory
from benchmarks.page import as_rich, describe_environment, update, update_goals
from benchmarks.pairs import pairs
from benchmarks.pipeline import pipeline
from benchmarks.plain_loop import plain_loop
from benchmarks.prepare import prepare
from benchmarks.rows import rows
from benchmarks.scaling import scaling
from benchmarks.startup import startup
from benchmarks.step import step
from benchmarks.stores import stores
from benchmarks.transfers import transfers
from benchmarks.views import views
from medcl3d.core.errors import ConfigError

BENCHMARKS: dict[str, Callable[[Bench], Table | list[Table]]] = {
    "stores": stores,
    "pairs": pairs,
    "views": views,
    "pipeline": pipeline,
    "losses": losses,
    "loss_peers": loss_peers,
    "grad_cache": grad_cache,
    "step": step,
    "plain_loop": plain_loop,
    "startup": startup,
    "memory": memory,
    "prepare": prepare,
    "inference": inference,
    "transfers": transfers,
    "collection": collection,
    "rows": rows,
    "scaling": scaling,
    "gpu": gpu,
}
BY_NAME = ("gpu",)
"""Benchmarks that only run if they are named: not every machine can run them."""


def benchmark(names: Sequence[str] = (), out: Path | None = None, scale: Scale | None = None) -> list[Table]:
    """Run benchmarks and print their tables.

    names: keys of `BENCHMARKS`, default all but `BY_NAME`; out: a JSON file (.json), or a Markdown file (.md)
    and the JSON file beside it, in which the sections of each benchmark are replaced when it is finished. If
    the command was stopped, the same command resumes: see `Finished`. ConfigError: an unknown name, or
    another file type.
    """
    from rich.console import Console

    if unknown := [name for name in names if name not in BENCHMARKS]:
        raise ConfigError(f"benchmark {unknown[0]}: unknown name; use {', '.join(BENCHMARKS)}")
    if out is not None and out.suffix not in (".md", ".json"):
        raise ConfigError(f"--out {out}: ends in neither .md nor .json; use a file name with one of them")
    console, tables = Console(), list[Table]()
    console.print(describe_environment())
    chosen = list(names or (name for name in BENCHMARKS if name not in BY_NAME))
    finished = None if out is None else Finished(out, chosen)
    with tempfile.TemporaryDirectory(prefix="medcl3d-benchmark-") as folder:
        bench = Bench(Path(folder), scale or Scale())
        for name in chosen:
            if finished is not None and name in finished.names:
                console.print(f"{name}: finished before; delete {finished.path} to measure it again")
                continue
            bench.say(f"{name} begins")
            environment = describe_environment()
            made = BENCHMARKS[name](bench)
            new = [made] if isinstance(made, Table) else made
            tables += new
            for table in new:
                console.print(as_rich(table))
                console.print(table.note)
            if out is not None and finished is not None:
                for path in (out, out.with_suffix(".json")):
                    update(path, new, environment)
                if out.suffix == ".md":
                    update_goals(out)
                finished.add(name)
    return tables

"""What this machine does in a second and holds in memory: stores, pairs, views, losses, the gradient cache, a training step, a collection.

Everything is measured on simulated scans that are made for it. Rates of crops, pairs and views are per
second of one core's processor time, so that what else the machine does counts little; those that are
compared take turns in one run, and a ratio is given with its interval over these turns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from medcl3d.benchmarks.chunks import grad_cache
from medcl3d.benchmarks.collection import collection
from medcl3d.benchmarks.losses import losses
from medcl3d.benchmarks.measure import Bench, Scale, Table
from medcl3d.benchmarks.page import as_rich, describe_machine, update
from medcl3d.benchmarks.pairs import pairs
from medcl3d.benchmarks.step import step
from medcl3d.benchmarks.stores import stores
from medcl3d.benchmarks.views import views
from medcl3d.errors import ConfigError

BENCHMARKS: dict[str, Callable[[Bench], Table]] = {
    "stores": stores,
    "pairs": pairs,
    "views": views,
    "losses": losses,
    "grad_cache": grad_cache,
    "step": step,
    "collection": collection,
}


def benchmark(names: Sequence[str] = (), out: Path | None = None, scale: Scale | None = None) -> list[Table]:
    """Run benchmarks and print their tables.

    names: those of `BENCHMARKS`, default all; out: a file whose sections of these benchmarks are written, Markdown (.md) or
    JSON (.json). ConfigError: an unknown name, or a file of another kind.
    """
    from rich.console import Console

    if unknown := [name for name in names if name not in BENCHMARKS]:
        raise ConfigError(f"benchmark {unknown[0]}: there is none of this name; there are {', '.join(BENCHMARKS)}")
    if out is not None and out.suffix not in (".md", ".json"):
        raise ConfigError(f"--out {out}: ends in neither .md nor .json; name a file that does")
    console = Console()
    machine, tables = describe_machine(), []
    console.print(machine)
    with tempfile.TemporaryDirectory(prefix="medcl3d-benchmark-") as folder:
        bench = Bench(Path(folder), scale or Scale())
        for name in names or BENCHMARKS:
            tables.append(BENCHMARKS[name](bench))
            console.print(as_rich(tables[-1]))
            console.print(tables[-1].note)
            if out is not None:  # after each, so that a run that is cut short keeps what it measured
                update(out, tables[-1:], machine)
    return tables

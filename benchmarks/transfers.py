"""What a training step transfers, and how often the CPU waits for it, on a pretended device."""

from __future__ import annotations

import contextlib
import io

from benchmarks.measure import Bench, Table, by
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.objectives import OBJECTIVES

OTHERS = (("dense", "cycle_voxels"), ("dense", "region_points"), ("simclr", "multi_crop"))
TITLE = "Reads and copies of a step"
COLUMNS = ("objective", "strategy", "reads", "blocking copies", "other copies", "reads of a logged step")


def transfers(bench: Bench) -> Table:
    """Reads and copies per step of each objective, without and with logging."""
    from tests.pretend.allowed import READS
    from tests.pretend.device import BLOCKING, COPY, READ
    from tests.pretend.steps import PATCH, by_kind, pretraining_steps

    rows: list[tuple[str, ...]] = []
    for objective, strategy in (*((name, "overlapping_crops") for name in OBJECTIVES.names()), *OTHERS):
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                record, _ = pretraining_steps(bench.store.root, objective, strategy)
        except (ConfigError, DataError) as error:
            rows.append((objective, strategy, "-", "-", "-", f"not counted: {error}"))
            continue
        step, logged = (by_kind(events) for events in record.steps[-2:])
        counts = (step[READ], step[BLOCKING], step[COPY], logged[READ])
        rows.append((objective, strategy, *map(str, counts)))
    reasons = "; ".join(f"{reason} (`{place}`)" for place, reason in READS.items() if reason != "the same")
    note = (
        "Counted on a pretended device (`tests/pretend`), not measured on a GPU: its tensors are on the CPU, "
        "and are recorded as if they were not. The CPU waits for a read until all earlier work of the device "
        "is done, and for a blocking copy; other copies are from pinned memory. "
        f"`unet3d`, 4 samples of {by(PATCH)} voxels. The reads of steps without logging: {reasons}."
    )
    return Table(TITLE, COLUMNS, tuple(rows), note)

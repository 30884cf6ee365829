"""Where the time of a training step goes: a table of its parts and operations, and a trace."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from medcl3d.distributed.collectives import rank, say
from medcl3d.io.atomic import write_text
from medcl3d.training.step_advice import INSIDE, PARTS

BEFORE, PROFILED = 4, 5
"""Steps before the profile, which allocate memory and fill queues; its steps."""
MOST_OPERATIONS = 30
TABLE, ROW = Path("profile") / "times.txt", re.compile(r"  (\w+) +([\d.]+) ms per step")

_profiling = False


def part_of_forward(name: str) -> AbstractContextManager[Any]:
    """Mark one of `INSIDE`, if a `StepProfile` is active."""
    return record_function(f"step/{name}") if _profiling else nullcontext()


class StepProfile:
    """Profiles steps 5 to 9 of a run on rank 0; does nothing if it is not enabled."""

    def __init__(self, enabled: bool, folder: Path, device: torch.device):
        self.folder, self.device = folder / "profile", device
        self._profiler: Any = None
        if enabled and rank() == 0:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
            steps = schedule(wait=BEFORE - 1, warmup=1, active=PROFILED, repeat=1)
            self._profiler = profile(activities=activities, schedule=steps, on_trace_ready=self._write)

    def __enter__(self) -> StepProfile:
        global _profiling
        if self._profiler is not None:
            self._profiler.start()
            _profiling = True
        return self

    def __exit__(self, *_: object) -> None:
        global _profiling
        _profiling = False
        if self._profiler is not None:
            self._profiler.stop()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Mark a part of a step, one of `PARTS`; a GPU ends each before the next begins."""
        if self._profiler is None:
            yield
            return
        with record_function(f"step/{name}"):
            yield
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

    def step(self) -> None:
        """End a step."""
        if self._profiler is not None:
            self._profiler.step()

    def _write(self, found: Any) -> None:
        averages = found.key_averages()
        seconds = {row.key.removeprefix("step/"): row.cpu_time_total / 1e6 for row in averages}
        steps = min((row.count for row in averages if row.key.removeprefix("step/") in PARTS), default=0)
        if self.device.type == "cuda":  # it does not end these before the next begins
            seconds = {name: value for name, value in seconds.items() if name not in INSIDE}
        if any(name not in seconds for name in PARTS):  # the run ended within the profiled steps
            return
        self.folder.mkdir(exist_ok=True)
        found.export_chrome_trace(str(self.folder / "trace.json"))
        order = "self_cuda_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        text = parts_text(seconds, steps)
        operations = averages.table(sort_by=order, row_limit=MOST_OPERATIONS)
        write_text(self.folder / "times.txt", f"{text}\n\n{operations}\n")
        say(
            f"{text}\n{self.folder}: times.txt has the operations; open trace.json in ui.perfetto.dev\n"
            f"what could be changed: medcl3d doctor {self.folder.parent}"
        )


def parts_text(seconds: Mapping[str, float], steps: int) -> str:
    """One line per part of a step with its time and share.

    seconds  part -> total over the profiled steps; other names are ignored
    steps    profiled steps; fewer than `PROFILED` if the run ended before
    """
    total = sum(seconds[name] for name in PARTS)
    lines = [f"profile of {steps} step{'s' if steps != 1 else ''}:"]
    for name in (*PARTS, *(name for name in INSIDE if name in seconds)):
        time = f"  {name:<9} {seconds[name] / steps * 1000:9.1f} ms per step, {seconds[name] / total:.0%}"
        lines.append(f"{time}, in forward" if name in INSIDE else time)
    return "\n".join(lines)


def read_parts(run: Path) -> dict[str, float] | None:
    """Part -> ms per step of a profiled run; None if it has no profile."""
    if not (run / TABLE).is_file():
        return None
    lines = map(ROW.match, (run / TABLE).read_text().splitlines())
    parts = {line[1]: float(line[2]) for line in lines if line}
    return parts if set(PARTS) <= set(parts) else None

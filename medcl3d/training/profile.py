"""Where the time of a training step goes: a table of its parts and operations, and a trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from medcl3d.distributed.collectives import rank, say
from medcl3d.io.atomic import write_text

PARTS = ("data", "forward", "backward", "optimizer")
BEFORE, PROFILED = 4, 5
"""Steps before the profile, which allocate memory and fill queues; its steps."""
MOST_WAITING, MOST_OPERATIONS = 0.05, 30


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
        if self._profiler is not None:
            self._profiler.start()
        return self

    def __exit__(self, *_: object) -> None:
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
        if any(name not in seconds for name in PARTS):  # the run ended within the profiled steps
            return
        self.folder.mkdir(exist_ok=True)
        found.export_chrome_trace(str(self.folder / "trace.json"))
        order = "self_cuda_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        text, operations = parts_text(seconds), averages.table(sort_by=order, row_limit=MOST_OPERATIONS)
        write_text(self.folder / "times.txt", f"{text}\n\n{operations}\n")
        say(f"{text}\n{self.folder}: times.txt has the operations; open trace.json in ui.perfetto.dev")


def parts_text(seconds: Mapping[str, float]) -> str:
    """One line per part of a step with its time and share, and what could be changed.

    seconds: part -> total over the profiled steps; other names are ignored
    """
    total = sum(seconds[name] for name in PARTS)
    lines = [f"profile of {PROFILED} steps:"]
    lines += [
        f"  {name:<9} {seconds[name] / PROFILED * 1000:9.1f} ms per step, {seconds[name] / total:.0%}"
        for name in PARTS
    ]
    if seconds["data"] > MOST_WAITING * total:
        lines.append("  the step waits for data: raise train.workers, or use a local disk for data.root")
    return "\n".join(lines)

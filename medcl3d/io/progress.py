"""Progress bars of one form; nothing is shown if the output is not a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")


def progress_bar(*measures: ProgressColumn, console: Console | None = None, shown: bool = True) -> Progress:
    """A bar without tasks: title, bar, `measures` (default: items done, of all), time elapsed, time left.

    console: default standard error
    """
    console = console or Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *(measures or (MofNCompleteColumn(),)),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not (shown and console.is_terminal),
    )


def track(items: Iterable[T], title: str) -> Iterator[T]:
    """The items, one by one, with a bar of their number."""
    with progress_bar() as progress:
        yield from progress.track(items, description=title)


@contextmanager
def titled_bar(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar of the number of items; calling the result advances it by one and sets the title."""
    with progress_bar() as progress:
        task = progress.add_task(title, total=total)
        yield lambda text: progress.update(task, advance=1, description=text)


def duration(seconds: float) -> str:
    """``40 s``, ``12 min`` or ``3.5 hours``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} hours"

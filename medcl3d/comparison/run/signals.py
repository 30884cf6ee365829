"""Signals that stop a comparison: SIGTERM (a cluster's time limit), SIGHUP (a closed terminal), Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from medcl3d.core.errors import Stopped


@contextmanager
def stop_event() -> Iterator[threading.Event]:
    """An event that is set by a signal; a second signal interrupts."""
    requested = threading.Event()

    def request(_number: int, _frame: FrameType | None) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()

    with _handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), request):
        yield requested


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Stopped at once on SIGTERM or SIGHUP, for work that is repeated from its beginning."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Stopped(f"stopped by {signal.Signals(number).name}; the same command resumes")

    with _handled((signal.SIGTERM, signal.SIGHUP), stop):
        yield


@contextmanager
def _handled(
    numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Handle signals, but not SIGHUP if it is ignored, as under nohup. Only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    before = {number: signal.signal(number, handler) for number in numbers if number not in ignored}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)

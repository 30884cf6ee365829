"""Signals that stop a comparison: SIGTERM (a cluster's time limit), SIGHUP (a closed terminal), Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from medcl3d.core.errors import Stopped
from medcl3d.io.signals import handled


@contextmanager
def stop_event() -> Iterator[threading.Event]:
    """An event that is set by a signal; a second signal interrupts."""
    requested = threading.Event()

    def request(_number: int, _frame: FrameType | None) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()

    with handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), request):
        yield requested


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Stopped at once on SIGTERM or SIGHUP, for work that is repeated from its beginning."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Stopped(f"stopped by {signal.Signals(number).name}; the same command resumes")

    with handled((signal.SIGTERM, signal.SIGHUP), stop):
        yield

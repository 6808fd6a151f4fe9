"""Stopping a service: SIGTERM and Ctrl-C set an event that every loop looks at; a second one ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

PATIENCE_SECONDS: Final = 0.5
"""How long what is under way may take to end by itself once a stop is asked for."""


@contextmanager
def stop_on_signals(
    stop: threading.Event | None = None, *, overdue: Callable[[], None] | None = None
) -> Iterator[threading.Event]:
    """Set `stop` (given back; a new one by default) at the first SIGTERM or SIGINT; handlers are put back at the end.

    Where the work goes on for longer than PATIENCE_SECONDS after that, `overdue` is called once, in a thread of its
    own, to cancel what is under way. The second signal acts as it would without headrace: what is not committed is
    done again at the next start.
    """
    event = stop or threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    timer = None
    if overdue is not None:
        timer = threading.Timer(PATIENCE_SECONDS, overdue)
        timer.daemon = True

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def first(_number: int, _frame: FrameType | None) -> None:
        event.set()
        restore()
        if timer is not None:
            timer.start()

    for number in before:
        signal.signal(number, first)
    try:
        yield event
    finally:
        restore()
        if timer is not None:
            timer.cancel()

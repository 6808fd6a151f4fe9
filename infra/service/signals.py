"""Stops a service: SIGTERM and Ctrl-C set an event that every loop checks; a second one ends it at once.

A server that does not answer does not delay the stop: pending queries are cancelled, then connections are shut down,
and finally the process exits, within a second of the signal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

import psycopg

from infra.service import interrupts
from schemas.errors import Interrupted

PATIENCE_SECONDS: Final = 0.4
"""How long current work may continue after a stop was requested."""
_CUT_SECONDS: Final = 0.65
"""When connections are shut down, after the signal."""
_END_SECONDS: Final = 0.85
"""When the process exits in any case, after the signal."""

_LOOK_SECONDS: Final = 0.2
"""Interval of checks whether to cancel a wait for a server."""


@contextmanager
def stop_on_signals(
    stop: threading.Event | None = None,
    *,
    overdue: Callable[[], None] | None = None,
    cut: Callable[[], None] | None = None,
    exit_code: int = 1,
) -> Iterator[threading.Event]:
    """Set `stop` (yielded; a new event by default) at the first SIGTERM or SIGINT; restore the handlers at the end.

    If the work continues longer than PATIENCE_SECONDS after that, `overdue` is called once, in its own thread, to
    cancel it; then `cut`, to shut down its connections; finally the process exits with `exit_code`, as if killed.
    Without `overdue` only `infra.service.interrupts` limits the time, around a whole command. The second signal ends
    the process at once: uncommitted work is repeated at the next start.
    """
    event = stop or threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    timers = _timers(overdue, cut, exit_code) if overdue is not None else []
    asked = threading.Lock()

    def first() -> None:
        interrupts.note()
        if asked.acquire(blocking=False):
            for timer in timers:
                timer.start()
            event.set()

    def handle(_number: int, _frame: FrameType | None) -> None:
        for number in before:
            signal.signal(number, signal.SIG_DFL)
        if not timers:  # else a thread does it: the interrupted one may hold the event's lock
            first()

    for number in before:
        signal.signal(number, handle)
    try:
        # Python runs a handler only once the main thread returns from a library, which may itself wait for a server.
        with _woken(first) if timers else interrupts.ending_with(exit_code):
            yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for timer in timers:
            timer.cancel()


@contextmanager
def bounded(
    connection: psycopg.Connection[Any],
    stop: threading.Event,
    *,
    seconds: float | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Cancel the connection's query once `stop` is set or `seconds` have passed.

    `meanwhile` is called repeatedly in its own thread; its psycopg errors are ignored. Raises Interrupted after a stop,
    and psycopg.errors.QueryCanceled if it timed out. The work inside must be safe to interrupt.
    """
    over = threading.Event()
    deadline = None if seconds is None else time.monotonic() + seconds

    def watch() -> None:
        while not over.wait(_LOOK_SECONDS):
            if meanwhile is not None and not stop.is_set():
                with contextlib.suppress(psycopg.Error):
                    meanwhile()
            if stop.is_set() or (deadline is not None and time.monotonic() > deadline):
                # Repeatedly: a cancel request between two statements has no effect.
                with contextlib.suppress(psycopg.Error):
                    connection.cancel_safe(timeout=1.0)

    watcher = threading.Thread(target=watch, name="cancel what waits too long", daemon=True)
    watcher.start()
    try:
        yield
    except psycopg.errors.QueryCanceled as error:
        if not stop.is_set():
            raise
        raise Interrupted("stopped while waiting for the database") from error
    finally:
        over.set()
        watcher.join()


def shut_down(connection: psycopg.Connection[Any]) -> None:
    """Shut down a connection's socket, so that a thread that waits for its server finds it closed.

    For another thread, where closing the connection itself would not be safe. Idempotent.
    """
    with (
        contextlib.suppress(psycopg.Error, OSError),
        socket.socket(fileno=os.dup(connection.pgconn.socket)) as shared,
    ):
        shared.shutdown(socket.SHUT_RDWR)


def _timers(overdue: Callable[[], None], cut: Callable[[], None] | None, exit_code: int) -> list[threading.Timer]:
    def end() -> None:
        interrupts.leave(exit_code, interrupts.STUCK)

    steps = [(PATIENCE_SECONDS, overdue), (_CUT_SECONDS, cut or (lambda: None)), (_END_SECONDS, end)]
    timers = [threading.Timer(seconds, step) for seconds, step in steps]
    for timer in timers:
        timer.daemon = True
    return timers


@contextmanager
def _woken(first: Callable[[], None]) -> Iterator[None]:
    """Watch for signals in a separate thread, even while the main thread is blocked in a library.

    It calls `first`; the second signal ends the process with the shell's exit code for it.
    """

    def watch(receiver: socket.socket) -> None:
        seen = 0
        while numbers := receiver.recv(16):
            for number in numbers:
                if number in (signal.SIGTERM, signal.SIGINT):
                    seen += 1
                    if seen > 1:
                        os._exit(128 + number)
                    first()

    with interrupts.watched_by(watch, "signals"):
        yield

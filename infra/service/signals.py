"""Stopping a service: SIGTERM and Ctrl-C set an event that every loop looks at; a second one ends it at once.

A server that does not answer keeps nobody: what waits for it is cancelled, then its connections are shut down, and
what even that does not end is ended with the process, within two seconds of the signal.
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

from schemas.errors import Interrupted

PATIENCE_SECONDS: Final = 0.5
"""How long what is under way may take to end by itself once a stop is asked for."""
_CUT_SECONDS: Final = 1.0
"""When its connections are shut down, from the signal."""
_END_SECONDS: Final = 1.9
"""When the process ends, whatever it does."""

_LOOK_SECONDS: Final = 0.2
"""How often what waits for a server is looked at: whether it is to be cancelled, and what it waits for."""

_STUCK: Final = "headrace: ended without waiting for a server that does not answer; nothing is lost\n"


@contextmanager
def stop_on_signals(
    stop: threading.Event | None = None,
    *,
    overdue: Callable[[], None] | None = None,
    cut: Callable[[], None] | None = None,
    exit_code: int = 1,
) -> Iterator[threading.Event]:
    """Set `stop` (given back; a new one by default) at the first SIGTERM or SIGINT; handlers are put back at the end.

    Where the work goes on for longer than PATIENCE_SECONDS after that, `overdue` is called once, in a thread of its
    own, to cancel what is under way; then `cut`, to shut down its connections; and at last the process ends with
    `exit_code`, as if it were killed. Without `overdue` it may take as long as it does. The second signal ends it at
    once: what is not committed is done again at the next start.
    """
    event = stop or threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    timers = _timers(overdue, cut, exit_code) if overdue is not None else []
    asked = threading.Lock()

    def first() -> None:
        if asked.acquire(blocking=False):
            event.set()
            for timer in timers:
                timer.start()

    def handle(_number: int, _frame: FrameType | None) -> None:
        for number in before:
            signal.signal(number, signal.SIG_DFL)
        first()

    for number in before:
        signal.signal(number, handle)
    try:
        # Python calls a handler only when the main thread is back from a library, which may wait for a server itself.
        with _woken(first) if timers else contextlib.nullcontext():
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
    """Cancel what the connection waits for once `stop` is set or `seconds` are over, such as transactions to end.

    `meanwhile` is called again and again in a thread of its own; what it raises of psycopg's is ignored. Raises
    Interrupted in place of what a stop ended, and psycopg.errors.QueryCanceled where the time was over. Whatever is
    done inside must be safe to leave half done.
    """
    over = threading.Event()
    deadline = None if seconds is None else time.monotonic() + seconds

    def watch() -> None:
        while not over.wait(_LOOK_SECONDS):
            if meanwhile is not None and not stop.is_set():
                with contextlib.suppress(psycopg.Error):
                    meanwhile()
            if stop.is_set() or (deadline is not None and time.monotonic() > deadline):
                # Again and again: one that comes between two statements cancels nothing.
                with contextlib.suppress(psycopg.Error):
                    connection.cancel_safe(timeout=1.0)

    watcher = threading.Thread(target=watch, name="cancel what waits too long", daemon=True)
    watcher.start()
    try:
        yield
    except psycopg.errors.QueryCanceled as error:
        if not stop.is_set():
            raise
        raise Interrupted("stopped while it waited for the database") from error
    finally:
        over.set()
        watcher.join()


def shut_down(connection: psycopg.Connection[Any]) -> None:
    """Shut a connection's socket down, so that whatever thread waits for its server finds it closed.

    Called from another thread, where closing the connection itself would not be safe. A duplicate does nothing.
    """
    with (
        contextlib.suppress(psycopg.Error, OSError),
        socket.socket(fileno=os.dup(connection.pgconn.socket)) as shared,
    ):
        shared.shutdown(socket.SHUT_RDWR)


def _timers(overdue: Callable[[], None], cut: Callable[[], None] | None, exit_code: int) -> list[threading.Timer]:
    def end() -> None:
        with contextlib.suppress(OSError):
            os.write(2, _STUCK.encode())
        os._exit(exit_code)

    steps = [(PATIENCE_SECONDS, overdue), (_CUT_SECONDS, cut or (lambda: None)), (_END_SECONDS, end)]
    timers = [threading.Timer(seconds, step) for seconds, step in steps]
    for timer in timers:
        timer.daemon = True
    return timers


@contextmanager
def _woken(first: Callable[[], None]) -> Iterator[None]:
    """Have a thread of its own notice signals, also while the main thread is in a library that does not.

    It calls `first`; the second signal ends the process, as the shell counts it.
    """
    receiver, sender = socket.socketpair()
    sender.setblocking(False)

    def watch() -> None:
        seen = 0
        while numbers := receiver.recv(16):
            for number in numbers:
                if number in (signal.SIGTERM, signal.SIGINT):
                    seen += 1
                    if seen > 1:
                        os._exit(128 + number)
                    first()

    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        sender.close()
        watcher.join()
        receiver.close()

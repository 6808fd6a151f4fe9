"""Ends a command within a second of Ctrl-C, also while it waits for a server in a library that no signal interrupts.

`guarded` is around a whole command. Ctrl-C raises KeyboardInterrupt as always, and `stop_on_signals` sets an event; if
the process is still there after that, a thread ends it as if killed, which every command allows for. What must be
finished instead is in `finishing`.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, NoReturn

INTERRUPTED: Final = 130
"""The exit code after Ctrl-C, as a shell reports it: 128 plus the signal's number."""
STOPPED: Final = "headrace: stopped; start it again to continue"
STUCK: Final = "headrace: exited without waiting for a server that does not answer; nothing is lost"

_PATIENCE_SECONDS: Final = 0.75
"""How long a command may take to end by itself after the signal."""
_LOOK_SECONDS: Final = 0.05


class _State:
    """The process's own: whether it was asked to stop, and what it has to finish before."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._limits: list[float] = []
        self._ways: list[int] = []
        self.asked = False
        self._finished = -math.inf
        """When the last work that had to be finished ended: from then on there is time as after a signal."""

    def begin(self, seconds: float) -> None:
        with self._lock:
            self._limits.append(seconds)

    def finish(self, seconds: float) -> None:
        with self._lock:
            self._limits.remove(seconds)
            self._finished = time.monotonic()

    @property
    def finishes(self) -> bool:
        """Whether something is to be finished, however long it takes."""
        with self._lock:
            return max(self._limits, default=0.0) == math.inf

    def end_of_patience(self, signalled: float) -> float:
        """Return the monotonic time at which the process ends in any case, after a signal at `signalled`."""
        with self._lock:
            return max(signalled, self._finished) + max(self._limits, default=_PATIENCE_SECONDS)

    def push(self, exit_code: int) -> None:
        self._ways.append(exit_code)

    def pop(self) -> None:
        self._ways.pop()

    def end(self) -> NoReturn:
        """End the process with the one line that an operator sees of it."""
        with self._lock:
            code, line = (self._ways[-1], STUCK) if self._ways else (INTERRUPTED, STOPPED)
            leave(code, line)


_STATE: Final = _State()


def note() -> None:
    """Record that the process was asked to stop."""
    _STATE.asked = True


def asked(seconds: float = 0.0) -> bool:
    """Return whether the process was asked to stop.

    Waits up to `seconds` to know it: the thread that gets the signal may be a moment behind the main one.
    """
    deadline = time.monotonic() + seconds
    while not _STATE.asked and time.monotonic() < deadline:
        time.sleep(0.01)
    return _STATE.asked


@contextmanager
def finishing(seconds: float = math.inf) -> Iterator[None]:
    """Let the work inside end by itself within `seconds` of a signal, by default however long it takes."""
    _STATE.begin(seconds)
    try:
        yield
    finally:
        _STATE.finish(seconds)


@contextmanager
def ending_with(exit_code: int) -> Iterator[None]:
    """End the process with `exit_code` if the work inside does not end by itself after a signal."""
    _STATE.push(exit_code)
    try:
        yield
    finally:
        if not _STATE.asked:  # what is closed after the work may wait, too
            _STATE.pop()


@contextmanager
def guarded() -> Iterator[None]:
    """Watch for signals in a separate thread; for the main thread, around a whole command."""
    _STATE.asked = False  # a process, such as a test's, may run several commands
    with watched_by(_watch, "interrupts"):
        yield


@contextmanager
def watched_by(watch: Callable[[socket.socket], None], name: str) -> Iterator[None]:
    """Run `watch` in a thread of this name, with a socket that receives the number of each signal as a byte.

    For the main thread. The thread gets them even while the main one is blocked in a library; at the end it reads no
    byte, and has to return.
    """
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    watcher = threading.Thread(target=watch, args=(receiver,), name=name, daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        sender.close()
        watcher.join()
        receiver.close()


def leave(exit_code: int, line: str | None = None) -> NoReturn:
    """End the process now, without the destructors of libraries, which may wait for a server."""
    with suppress(OSError, ValueError):
        if line is not None:
            os.write(2, f"{line}\n".encode())
        sys.stderr.flush()
    os._exit(exit_code)


def _watch(receiver: socket.socket) -> None:
    limit: threading.Thread | None = None
    while numbers := receiver.recv(16):
        for number in numbers:
            if number not in (signal.SIGINT, signal.SIGTERM):
                continue
            note()
            if limit is None:
                limit = threading.Thread(target=_limit, name="limit of an interrupt", daemon=True)
                limit.start()
            elif not _STATE.finishes:
                _STATE.end()  # the second one


def _limit() -> None:
    begun = time.monotonic()
    while time.monotonic() < _STATE.end_of_patience(begun):
        time.sleep(_LOOK_SECONDS)
    _STATE.end()

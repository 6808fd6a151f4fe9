"""The producer of a round: a separate process, forked from one that has everything imported, which may be killed."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final

from infra.settings.model import LogSettings, Settings

_FORKS: Final = multiprocessing.get_context("forkserver")
# Includes everything imported by the module that runs the rounds, since each fork imports it too.
_FORKS.set_forkserver_preload(["tests.preloaded", "tests.fuzz.planting", __name__])

_CHILDREN: Final = threading.Lock()
"""Each start waits for the child processes of all threads; if two wait for the same one, one gets exit code 255."""


@dataclass(frozen=True)
class End:
    """How a producer ended: in order, refused by an error of headrace, or otherwise (`error` is empty)."""

    code: int
    error: str = ""
    problem: str = ""
    remedy: str = ""

    @property
    def in_order(self) -> bool:
        return self.code in (0, -signal.SIGTERM)

    def __str__(self) -> str:
        return f"it ended with {self.code}: {self.error} {self.problem}; {self.remedy}"


class Producer:
    """`headrace produce main`, with the given settings.

    With `python_codec` rows are encoded as without a compiler. `plant` is a fault of `planted` that it has.
    """

    def __init__(self, settings: Settings, log: Path, *, python_codec: bool = False, plant: str | None = None) -> None:
        self.log = log
        self._end = log.with_suffix(".end")
        self._end.unlink(missing_ok=True)
        log.touch()
        self._from = log.stat().st_size
        heard, self._hurry = _FORKS.Pipe(duplex=False)
        self._process = _FORKS.Process(target=_produce, args=(settings, log, self._end, heard, python_codec, plant))
        with _CHILDREN:
            self._process.start()
        heard.close()

    def hurry(self) -> None:
        """Have it look at the catalog and write a heartbeat now, which a round would otherwise wait for."""
        with contextlib.suppress(OSError):  # it has ended
            self._hurry.send(None)

    @property
    def reads(self) -> bool:
        """Whether it has started to read the WAL."""
        with self.log.open("rb") as lines:
            lines.seek(self._from)
            return b'"event": "reading"' in lines.read()

    @property
    def ended(self) -> End | None:
        """How it ended, None while it runs."""
        if (code := self._code) is None:
            return None
        if self._end.exists():
            return End(code, **json.loads(self._end.read_text()))
        return End(code, problem=self.log.read_text(errors="replace").rpartition("Traceback")[2][-1500:])

    def stop(self, seconds: float) -> bool:
        """Stop it in order; return whether it ended."""
        if self._code is None:
            assert self._process.pid is not None
            os.kill(self._process.pid, signal.SIGTERM)
        wait([self._process.sentinel], seconds)
        return self._code is not None

    def kill(self) -> None:
        with _CHILDREN:
            self._process.kill()
        wait([self._process.sentinel])
        with _CHILDREN:
            self._process.join()
            self._process.close()
        self._hurry.close()

    @property
    def _code(self) -> int | None:
        with _CHILDREN:
            return self._process.exitcode


def _hear(heard: Connection) -> None:
    """Hurry this process's session each time it is asked to."""
    from producers.session import opening  # noqa: PLC0415
    from producers.session.loop import Session  # noqa: PLC0415

    open_session, sessions = opening.open_session, list[Session]()

    @contextlib.contextmanager
    def opened(*arguments: Any) -> Iterator[Any]:
        with open_session(*arguments) as session:
            sessions[:] = [session] if isinstance(session, Session) else []
            yield session

    def listen() -> None:
        while True:
            try:
                heard.recv()
            except EOFError:  # the process that played the round ended without stopping this one
                os._exit(1)
            for session in sessions:
                session._heartbeat_due = 0.0

    opening.open_session = opened  # type: ignore[assignment]
    threading.Thread(target=listen, daemon=True).start()


def _produce(
    settings: Settings, log: Path, end: Path, heard: Connection, python_codec: bool, plant: str | None
) -> None:
    from infra.service import log as lines  # noqa: PLC0415  # imported once, in the process that this one is forked from
    from infra.service.signals import stop_on_signals  # noqa: PLC0415
    from producers.session.loop import Timing  # noqa: PLC0415
    from producers.session.service import produce  # noqa: PLC0415
    from schemas.codec import implementation  # noqa: PLC0415
    from schemas.errors import HeadraceError  # noqa: PLC0415
    from tests.fuzz import planted  # noqa: PLC0415

    with log.open("a") as output:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    if python_codec:
        implementation.compiled = None  # type: ignore[misc]  # as without a compiler
    if plant is not None:
        planted.plant(plant)
    lines.configure(LogSettings())
    _hear(heard)
    try:
        with stop_on_signals() as stop:
            # Periodic work of every few seconds happens several times in a round; see also `Producer.hurry`.
            produce(settings, "main", stop, Timing(heartbeat_seconds=2.0, copy_seconds=0.3))
    except HeadraceError as error:
        refusal = {"error": type(error).__name__, "problem": error.problem, "remedy": error.remedy}
        written = end.with_suffix(".written")
        written.write_text(json.dumps(refusal))
        written.rename(end)  # it may be killed at any moment
        sys.exit(error.exit_code)

"""A producer process that dies at given points, and the journal of the chunks that it read.

It is forked from a process that has imported everything already, so that thirty deaths take seconds.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from consumers.testing.waiting import PATIENCE
from tests.producers.crashes.failpoints import Arming, arm, wrap

_FORKS: Final = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.preloaded", __name__])


class Dying:
    """`headrace produce main`; its log goes to `log`. Unarmed, it is an ordinary producer."""

    def __init__(self, config: Path, journal: Path, arming: Arming | None) -> None:
        self.log = config.with_suffix(".log")
        self._process = _FORKS.Process(target=_produce, args=(config, self.log, journal, arming))
        self._process.start()

    def send(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def check(self) -> None:
        """Fail if it has ended."""
        assert self._process.exitcode is None, self.log.read_text()

    @property
    def has_ended(self) -> bool:
        """Whether it is gone already."""
        return self._process.exitcode is not None

    def waited(self, seconds: float) -> int | None:
        """Wait up to a time for the end; return the exit code (negative: a signal's number), None while it runs."""
        self._process.join(seconds)
        return self._process.exitcode

    def ended(self) -> int:
        """Wait for the end; return the exit code."""
        code = self.waited(PATIENCE)
        assert code is not None, f"never ended\n{self.log.read_text()}"
        return code

    def kill(self) -> None:
        self._process.kill()
        self._process.join(PATIENCE)
        self._process.close()


@contextmanager
def dying(config: Path, journal: Path, arming: Arming | None = None) -> Iterator[Dying]:
    """A process that is terminated at the end, however the test ends."""
    process = Dying(config, journal, arming)
    try:
        yield process
    finally:
        process.kill()


def note(journal: Path, **entry: Any) -> None:
    """Add a line to a journal, whole whatever happens next."""
    descriptor = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, json.dumps(entry).encode() + b"\n")
    finally:
        os.close(descriptor)


def chunks_read_again(journal: Path) -> list[int]:
    """Return, for each start in the journal, the number of chunks it read that an earlier start had read.

    A `copy` in the journal may start another copy of the table, whose chunks are all new.
    """
    again: list[int] = []
    read: set[tuple[str, ...]] = set()
    for line in journal.read_text().splitlines():
        entry = json.loads(line)
        match entry["what"]:
            case "start":
                again.append(0)
            case "copy":
                read.clear()
            case "chunk":
                place = (entry["table"], *(entry["after"] or ()))
                again[-1] += place in read
                read.add(place)
    return again


def _produce(config: Path, log: Path, journal: Path, arming: Arming | None) -> None:
    import headrace  # noqa: PLC0415  # imported once, in the process that this one is forked from

    with log.open("a") as output:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    _keep(journal)
    if arming is not None:
        arm(arming)
    sys.argv = ["headrace", "produce", "main", "--config", str(config)]
    headrace.main()


def _keep(journal: Path) -> None:
    def started(session: Any, *arguments: Any) -> Any:
        note(journal, what="start")
        return session(*arguments)

    def read(inner: Any, connection: Any, table: Any, bounds: Any, *arguments: Any, **options: Any) -> Any:
        chunk = inner(connection, table, bounds, *arguments, **options)
        note(journal, what="chunk", table=table.name, after=bounds.after, rows=chunk.rows)
        return chunk

    def truncated(inner: Any, feed: Any, *arguments: Any) -> Any:
        # Chunks before it may have to be copied again, but not because of a start.
        note(journal, what="copy")
        return inner(feed, *arguments)

    wrap("producers.session.opening:open_session", started)
    wrap("producers.publish.table_publisher:TableFeed.truncated", truncated)
    wrap("producers.session.copy_phase:read_chunk", read)

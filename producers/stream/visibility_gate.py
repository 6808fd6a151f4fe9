"""Holds the stream back until transactions in it are visible.

PostgreSQL decodes a commit when its WAL is flushed; other sessions see it later: usually a moment, but while a
synchronous standby is down as long as that lasts. Everything after a waiting transaction waits too, to keep the order.

With `publish_when_visible` a transaction is published only when every new snapshot of the source sees it. Without it, a
transaction waits only if it describes a table: the catalog is then queried for that table, and has to have the schema
of this transaction or a later one. In an earlier schema an added column would look like a dropped one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import psycopg

from infra.postgres.moments import current_moment
from infra.service import log
from infra.settings.model import DatabaseSettings
from producers.source import synchronous_commits
from producers.stream.messages import Begin, Message, RelationMessage
from schemas.positions import Lsn

_LOOK_SECONDS: Final = 0.01
_LOOK_MOST_SECONDS: Final = 0.1
"""The interval between snapshots while a transaction waits: at first, and later."""
_ANSWER_SECONDS: Final = 1.0
_SAID_SECONDS: Final = 5.0
_SAID_AGAIN_SECONDS: Final = 60.0

Sees = Callable[[int], bool]
"""Whether a snapshot sees the transaction with this 32-bit id, whose commit was decoded."""


class Messages(Protocol):
    """The source of messages: producers.stream.reassembly.Incoming, or the gate in front of it."""

    def read(self, limit: int, timeout: float) -> list[Message]: ...


class Answers(Protocol):
    """Sends answers to the server: producers.stream.connection.ReplicationStream."""

    @property
    def flushed(self) -> Lsn: ...

    @property
    def backend_pid(self) -> int: ...

    def confirm(self, flushed: Lsn) -> None: ...


def gated(
    incoming: Messages, database: DatabaseSettings, connection: psycopg.Connection[Any], stream: Answers, lines: log.Log
) -> Messages:
    """Return `incoming` behind the gate that its database's settings require."""
    kind = Begin if database.publish_when_visible else RelationMessage

    def awaited() -> bool:
        return synchronous_commits.waits_for(connection, stream.backend_pid)

    return VisibilityGate(incoming, lambda: current_moment(connection).snapshot.sees, awaited, stream, lines, kind=kind)


class VisibilityGate:
    """Reads `incoming` and returns its messages up to the first of type `kind` whose transaction is not visible.

    `take` takes a snapshot of the source. The ids in a slot's stream are within 2**31 of the server's next one, since
    the slot prevents freezing newer catalog rows; so a snapshot's nearest guess of their high half is right.
    `awaited` says whether commits wait for this stream's answers: such a transaction is returned, since gate and commit
    would otherwise wait for each other forever.
    """

    def __init__(
        self,
        incoming: Messages,
        take: Callable[[], Sees],
        awaited: Callable[[], bool],
        stream: Answers,
        lines: log.Log,
        *,
        kind: type[Begin] | type[RelationMessage],
    ) -> None:
        self._incoming = incoming
        self._take = take
        self._awaited = awaited
        self._stream = stream
        self._log = lines
        self._kind = kind
        self._waiting: list[Message] = []
        """The first belongs to a transaction that was not visible in the last snapshot."""
        self._xid = 0
        """The transaction of the next message, unless that begins another."""
        self._released: int | None = None
        """A transaction that is returned although it is not visible."""
        self._since = self._answer_due = self._said_due = 0.0
        self._said = False

    def read(self, limit: int, timeout: float) -> list[Message]:
        """Return the next visible messages; wait up to `timeout` seconds for the first. See Incoming.read.

        While messages wait nothing more is read, so that the slot retains the WAL after them and memory stays bounded;
        the server still gets answers.
        """
        deadline = time.monotonic() + timeout
        if not self._waiting:
            return self._passed(self._incoming.read(limit, timeout))
        while not (passed := self._passed(self._waiting)):
            now = time.monotonic()
            self._wait(now)
            if now >= deadline:
                break
            time.sleep(min(deadline - now, _LOOK_MOST_SECONDS, max(_LOOK_SECONDS, (now - self._since) / 10)))
        if passed and self._said:
            self._said = False
            self._log.info("publishing continues")
        return passed

    def _passed(self, messages: list[Message]) -> list[Message]:
        """Return the messages before the first that has to wait, and keep the rest."""
        kinds = [*map(type, messages)]
        if self._kind in kinds:
            sees = self._take()
            for place in range(kinds.index(self._kind), len(messages)):
                if kinds[place] is not self._kind:
                    continue
                xid = self._xid_at(messages, place)
                if xid != self._released and not sees(xid):
                    self._keep(messages[place:], xid)
                    return messages[:place]
        self._waiting = []
        if Begin in kinds:
            self._xid = self._xid_at(messages, len(messages) - 1)
        return messages

    def _xid_at(self, messages: list[Message], place: int) -> int:
        """Return the transaction that a message belongs to."""
        before = (messages[each] for each in range(place, -1, -1))
        return next((each.xid for each in before if isinstance(each, Begin)), self._xid)

    def _keep(self, messages: list[Message], xid: int) -> None:
        if not self._waiting or self._waiting[0] is not messages[0]:
            self._since = time.monotonic()
            self._said_due = self._since + _SAID_SECONDS
        self._waiting = messages
        self._xid = xid

    def _wait(self, now: float) -> None:
        """Answer the server, which ends a stream after wal_sender_timeout without answers; log the wait."""
        if now >= self._answer_due:
            self._answer_due = now + _ANSWER_SECONDS
            self._stream.confirm(self._stream.flushed)
            if self._awaited():
                self._released = self._xid
                synchronous_commits.report(self._log)
        if now >= self._said_due:
            self._said, self._said_due = True, now + _SAID_AGAIN_SECONDS
            self._log.warning(
                "publishing waits for a committed transaction to become visible: a synchronous standby may be down",
                xid=self._xid,
                seconds=round(now - self._since),
            )

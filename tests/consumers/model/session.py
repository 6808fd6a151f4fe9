"""Sessions on a model server, and stand-ins for the functions of the real code that are SQL."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from consumers.contract.decisions import Change
from consumers.delivery.dead_letter_topic import Entry, NewDeadLetter
from consumers.ledger import fence
from consumers.ledger.progress import Advance, LedgerMoved
from schemas.errors import OwnershipMoved
from schemas.xid_snapshot import Hidden
from tests.consumers.model.target import ModelServer, Transaction
from tests.consumers.model.world import Killed, World


class Cursor:
    """The part of psycopg's connection and cursor that the real code uses, on a model server."""

    def __init__(self, world: World, server: ModelServer, transaction: Transaction) -> None:
        self.world, self.server, self.tx = world, server, transaction
        self.connection = self
        self.info = self
        self.transaction_status = TransactionStatus.INTRANS
        self.closed = False

    def cursor(self) -> Cursor:
        return self

    def __enter__(self) -> Cursor:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def execute(self, statement: str, *_: object) -> Cursor:
        if "synchronous_commit = on" in statement:
            self.tx.synchronous = True
        return self

    def fetchone(self) -> tuple[str]:
        return ("yes",)

    def step(self) -> None:
        """Anything may happen before the next statement."""
        self.world.step()
        if self.tx.generation != self.server.generation:
            raise psycopg.OperationalError("the connection is lost")

    def lock(self, table: str, key: Any) -> None:
        if self.server.locked(self.tx, table, key):
            raise psycopg.errors.LockNotAvailable("by another transaction")

    def apply(self, change: Change) -> int:
        self.step()
        event = self.world.events[change.values["event"]]  # type: ignore[index]
        row = self.server.value(self.tx, "rows", event.key)
        if row is not None:
            self.lock("rows", event.key)
        if event.key in self.world.poison:
            raise psycopg.errors.CheckViolation("poison")
        self.tx.applied.append(event.number)
        self.tx.write("applied", (self.tx.run, event.number), True)
        if event.transaction not in self.server.visible:
            self.tx.blind.append(event.number)
        if row != "wanted":
            return 0
        self.tx.write("rows", event.key, "done")
        return 1


class Connection:
    """A session: one transaction at a time. After a loss the next one fails, and the one after that reconnects."""

    def __init__(self, world: World, server: ModelServer) -> None:
        self.world, self.server = world, server
        self._generation = server.generation
        self._cursor: Cursor | None = None

    @contextlib.contextmanager
    def transaction(self, force_rollback: bool = False) -> Iterator[None]:
        self.world.step()
        if self._generation != self.server.generation:
            self._generation = self.server.generation
            raise psycopg.OperationalError("the connection is lost")
        tx = self.server.begin()
        cursor = self._cursor = Cursor(self.world, self.server, tx)
        try:
            yield
            cursor.step()
            if not force_rollback:
                self._commit(tx)
        finally:
            if not self.server.undecided(tx):
                self.server.end(tx)
        self.world.step()

    def _commit(self, tx: Transaction) -> None:
        if not tx.writes:
            return
        self.world.require_right(self.server, tx)
        self.server.log(tx)
        if tx.synchronous and self.world.standby_away:
            raise Killed  # it waits for the standby, until an operator ends it
        self.server.end(tx)

    def cursor(self) -> Cursor:
        assert self._cursor is not None
        return self._cursor


class ModelLedger:
    """Replaces Ledger.advance."""

    def __init__(self, world: World) -> None:
        self._world = world

    def advance(self, cursor: Cursor, run: int, advances: Sequence[Advance], applied: int) -> bool:
        del applied
        for each in advances:
            cursor.step()
            key = (run, each.place)
            cursor.lock("ledger", key)
            recorded, topic = cursor.server.state["ledger"].get(key, (None, ""))
            careless = "compare-and-set of the ledger" in self._world.without
            if recorded is None or (recorded != each.expected and not careless):
                raise LedgerMoved("by another consumer")
            cursor.tx.write("ledger", key, (each.next_offset, topic))
            cursor.tx.moves.append((each.place, each.expected, each.next_offset))
        return True


def hold(cursor: Cursor, *, migration: str, run: int, gitlab_schema: str, database: str) -> Hidden:
    """Replaces fence.hold: the same locks, checks and errors."""
    del migration, gitlab_schema
    without = cursor.world.without
    cursor.step()
    control = dict(cursor.server.state["control"])
    if "look after the lock" in without:
        cursor.step()
    if "lock of the fence" not in without:
        cursor.tx.shares = True
        cursor.step()
    if "look after the lock" not in without:
        control = dict(cursor.server.state["control"])
    cursor.tx.fenced, cursor.tx.run = (database, run), run
    if "ownership" not in without and not control["name"] == control["owner"] == database:
        raise OwnershipMoved("moved")
    if "pause" not in without and control["paused"]:
        raise fence.Paused("paused")
    if "run" not in without and control["run"] != run:
        raise fence.RunReplaced("replaced")
    return cursor.server.hidden(cursor.tx)


@contextlib.contextmanager
def transaction(connection: Connection, *, undone: bool = False, **fenced: Any) -> Iterator[tuple[Cursor, Hidden]]:
    """Replaces fence.transaction."""
    with connection.transaction(force_rollback=undone):
        cursor = connection.cursor()
        yield cursor, hold(cursor, **fenced)


def record(cursor: Cursor, migration: str, run: int, database: str, dead_letters: Sequence[NewDeadLetter]) -> None:
    """Replaces dead_letter_rows.record."""
    del migration, database
    for each in dead_letters:
        cursor.step()
        cursor.tx.write("letters", (run, each.place, each.offset), "open")
        cursor.tx.dead_letters.append((each.place, each.offset))
        for (before, place, offset), state in cursor.server.state["letters"].items():
            same = (place, offset) == (each.place, each.offset) and before < run and state == "open"
            topics = {cursor.server.state["ledger"].get((of, each.place), (0, ""))[1] for of in (before, run)}
            if same and len(topics) == 1:
                cursor.tx.write("letters", (before, place, offset), "replaced")


def settle(cursor: Cursor, migration: str, entry: Entry) -> bool:
    """Replaces dead_letter_rows.settle."""
    del migration
    cursor.step()
    place, offset, run = entry.identity
    key = (run, place, offset)
    cursor.tx.run = run
    world, server = cursor.world, cursor.server
    if "only what is open is settled" not in world.without:
        cursor.lock("letters", key)
        if server.state["letters"].get(key) != "open":
            return False
    if "settled in the transaction of the effect" in world.without:
        own = server.begin()
        own.write("letters", key, "settled")
        server.commit(own)
        cursor.step()
    else:
        cursor.tx.write("letters", key, "settled")
    return True

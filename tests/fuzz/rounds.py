"""Plays a script on real servers, and says what broke: a topic that is not its table, or a table stopped wrongly."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from infra.positions import Positions, SnapshotState, read_sources
from infra.postgres import connect
from infra.settings import Settings
from infra.snapshot_requests import SnapshotRequest, send_request
from infra.stack import PostgresServer
from infra.topics import delete_topics
from schemas.positions import Lsn, parse_lsn
from schemas.topics import positions_topic
from tests.fuzz.acts import CATCH_UP, KILL, START, STOP, Act, Ending
from tests.fuzz.producing import Producer
from tests.fuzz.script import Script
from tests.fuzz.topics import INCOMPLETE, difference
from tests.fuzz.values import PRELUDE
from tests.producers.sources import settings_for

_OUR_DOING: Final = re.compile(r"publishes|replica identity", re.IGNORECASE)
"""In the message of an application's statement that failed: it would have worked, had nothing been published."""

_SETTLES: Final = 20.0
"""Seconds after which a table that is neither right nor stopped will not be."""


class Broken(AssertionError):
    """A promise that a round broke."""


@dataclass
class World:
    """Servers on which rounds are played, one database after the other."""

    server: PostgresServer
    bootstrap_servers: str
    directory: Path
    patience: float = 120.0
    _templates: dict[str, str] = field(default_factory=dict)

    def database(self, name: str, encoding: str) -> str:
        """Create a database of this encoding with everything that tables refer to; return its dsn."""
        if encoding not in self._templates:
            template = f"fuzz_{encoding.lower()}_{time.monotonic_ns() % 10**9}"
            self._create(template, encoding, "template0")
            with psycopg.connect(self.server.dsn(template), autocommit=True, client_encoding="UTF8") as connection:
                connection.execute(PRELUDE.encode())
            self._templates[encoding] = template
        self._create(name, encoding, self._templates[encoding])
        return self.server.dsn(name)

    def close(self) -> None:
        """Drop what its rounds had in common."""
        for template in self._templates.values():
            self.server.drop_database(template)

    def _create(self, name: str, encoding: str, template: str) -> None:
        with self.server.connect() as connection:
            provider = sql.SQL("LOCALE_PROVIDER libc" if connection.info.server_version >= 150_000 else "")
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} ENCODING {} LC_COLLATE 'C' LC_CTYPE 'C' {}").format(
                    sql.Identifier(name), sql.Identifier(template), encoding, provider
                )
            )


@dataclass
class Outcome:
    """What came of a round that broke nothing."""

    equal: int = 0
    stopped: list[str] = field(default_factory=list)
    refused: str = ""
    """Why the source could not be read from the first, if so."""
    failed: list[str] = field(default_factory=list)
    """Statements that their database refused, as it may."""


def play(world: World, script: Script) -> Outcome:
    """Play a round; raises Broken."""
    name = f"f{script.seed}_{time.monotonic_ns() % 10**9}"
    dsn = world.database(name, script.encoding)
    settings = settings_for(
        world.bootstrap_servers,
        name,
        # Large transactions are streamed before their end.
        make_conninfo(dsn, options="-c logical_decoding_work_mem=64kB"),
        *script.tables,
        snapshot={"chunk_rows": script.chunk_rows},
        allow_unlimited_wal=True,
        spill_directory=world.directory / name,
    )
    played = Round(world, script, settings, dsn)
    try:
        return played.play()
    finally:
        played.close()
        world.server.drop_database(name)
        with contextlib.suppress(Exception):
            states = read_sources(settings)
            topics = {each.topic for state in states.values() for each in state.snapshots.values()}
            delete_topics(settings.kafka, [*topics, positions_topic(name), f"{name}.schemas"])


class Round:
    """A round while it is played."""

    def __init__(self, world: World, script: Script, settings: Settings, dsn: str) -> None:
        self.world, self.script, self.settings = world, script, settings
        # The database's own settings are for headrace; the application has what it expects.
        options = "-c statement_timeout=0 -c lock_timeout=20s -c default_transaction_read_only=off -c DateStyle=ISO"
        options += " -c idle_in_transaction_session_timeout=0 -c search_path=public,ext -c array_nulls=on"
        options += " -c default_transaction_isolation=read\\ committed -c standard_conforming_strings=on"
        options += " -c idle_session_timeout=0 -c session_replication_role=origin -c xmloption=content"
        options += " -c default_transaction_deferrable=off -c transform_null_equals=off -c IntervalStyle=postgres"
        self._dsn = make_conninfo(dsn, options=options, client_encoding="UTF8")
        self._writer = psycopg.connect(self._dsn, autocommit=True)
        if self._writer.info.server_version >= 170_000:
            self._writer.execute("SET transaction_timeout = 0")
        self._producer: Producer | None = None
        self._positions = Positions(settings.prefix, settings.kafka)
        self._log = world.directory / f"{settings.prefix}.log"
        self._happened: list[Act] = []
        self._prepared: list[str] = []
        self._completed: set[str] = set()
        """Tables that were read again for values that the stream left out."""
        self.outcome = Outcome()

    def close(self) -> None:
        if self._producer is not None:
            self._producer.kill()
        with contextlib.suppress(psycopg.Error):
            self._writer.execute("ROLLBACK")  # of what broke in the midst of a transaction
            self._finish_prepared()
        self._writer.close()
        self._log.unlink(missing_ok=True)

    def play(self) -> Outcome:
        for act in self.script.first:
            self._carry_out(act)
        database = f'DATABASE "{self._writer.info.dbname}"'
        for setting in self.script.settings:
            self._writer.execute(f"ALTER {database} SET {setting}".encode())
        for setting in self.script.role_settings:
            self._writer.execute(f"ALTER ROLE CURRENT_USER IN {database} SET {setting}".encode())
        for act in self.script.acts:
            self._carry_out(act)
            if self.outcome.refused:
                return self.outcome
        self._finish_prepared()
        self._carry_out(START)
        self._carry_out(CATCH_UP)
        if not self.outcome.refused:
            self._prove()
            if self.script.read_anew and self.outcome.stopped:
                self._read_anew()
            self._carry_out(STOP)
        return self.outcome

    def _carry_out(self, act: Act) -> None:
        if act == START:
            self._producer = Producer(self.settings, self._log)
        elif act == STOP and self._producer is not None:
            if not self._producer.stop(self.world.patience):
                raise Broken("the producer did not stop")
            self._require_running(stopped=True)
            self._end_producer()
        elif act == KILL and self._producer is not None:
            self._require_running()
            self._end_producer()
        elif act == CATCH_UP and self._producer is not None:
            self._catch_up()
        elif act.what == "read it again" and act.table is not None:
            with self._tolerated("a request"):
                send_request(self._writer, SnapshotRequest(table=act.table))
        elif act.statements:
            self._write(act)

    def _end_producer(self) -> None:
        if self._producer is not None:
            self._producer.kill()
            self._producer = None

    def _write(self, act: Act) -> None:
        """Carry out the transaction, as far as the database lets it; one that is refused did not happen."""
        if act.ending is Ending.ALONE:
            # One after the other, whatever became of those before.
            happened = max(list(map(self._statement, act.statements)))
        else:
            self._writer.execute("BEGIN")
            # A row that is refused leaves the others of its transaction; a change is made whole or not at all.
            if act.what in ("write", "rows", "large transaction"):
                for statement in act.statements:
                    self._row(statement)
                whole = True
            else:
                whole = all(map(self._statement, act.statements))
            happened = self._end(act.ending if whole else Ending.ROLLBACK)
        if happened:
            self._happened.append(act)

    def _end(self, ending: Ending) -> bool:
        """End the transaction; return whether what it did is there to stay."""
        if ending is Ending.PREPARE:
            gid = f"{self.settings.prefix}-{len(self._happened)}"
            with self._tolerated(ending.value):
                self._writer.execute(f"PREPARE TRANSACTION '{gid}'".encode())
                self._prepared.append(gid)
                return True
        elif ending is Ending.COMMIT:
            with self._tolerated(ending.value):
                self._writer.execute("COMMIT")
                return True
        if self._writer.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            self._writer.execute("ROLLBACK")
        return False

    def _finish_prepared(self) -> None:
        while self._prepared:
            self._writer.execute(f"COMMIT PREPARED '{self._prepared.pop()}'".encode())

    def _row(self, statement: str) -> bool:
        if statement.startswith(("SAVEPOINT", "ROLLBACK")):
            self._writer.execute(statement.encode())
            return True
        self._writer.execute("SAVEPOINT statement")
        if self._statement(statement):
            return True
        self._writer.execute("ROLLBACK TO statement")
        return False

    def _statement(self, statement: str) -> bool:
        if self._prepared and not statement.startswith(("INSERT", "UPDATE", "DELETE")):
            # What alters a table would wait for the prepared transaction.
            if self._writer.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
                self._finish_prepared()
            else:
                return False
        with self._tolerated(statement):
            self._writer.execute(statement.encode())
            return True
        return False

    @contextlib.contextmanager
    def _tolerated(self, statement: str) -> Iterator[None]:
        """Note what the database refuses; raises Broken where that is our doing."""
        try:
            yield
        except psycopg.Error as error:
            message = str(error).splitlines()[0]
            self.outcome.failed.append(f"{message} ({statement[:80]})")
            writes = statement.startswith(("INSERT", "UPDATE", "DELETE", "TRUNCATE"))
            if writes and _OUR_DOING.search(f"{error}") and not self._own_identity_lost():
                raise Broken(f"a write of the application failed: {error} ({statement[:200]})") from error

    def _own_identity_lost(self) -> bool:
        """Whether the application took an identity or a key from a table itself."""
        return any(set(act.justifies) & {"identity", "key|unique|identity"} for act in self._happened)

    def _catch_up(self) -> None:
        # The producer's next heartbeat is behind everything that was written.
        row = self._writer.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        assert row is not None
        lsn = parse_lsn(row[0])
        deadline = time.monotonic() + self.world.patience
        self._finish_prepared()  # a first start waits for them
        while not self._there(lsn):
            if self._producer is not None and (ended := self._producer.ended) is not None:
                self._judge_end(ended)
                return
            if time.monotonic() > deadline:
                raise Broken(f"it never caught up; {self._tail()}")
            time.sleep(0.05)

    def _there(self, lsn: Lsn) -> bool:
        state = self._positions.sources().get("main")
        if state is None or state.stream is None or state.stream.commit_lsn < lsn:
            return False
        return all(each.stopped or not each.under_way for each in state.snapshots.values())

    def _require_running(self, *, stopped: bool = False) -> None:
        ended = self._producer.ended if self._producer is not None else None
        if ended is not None and not (stopped and ended.startswith(("it ended with 0", "it ended with -15"))):
            self._judge_end(ended)

    def _judge_end(self, ended: str) -> None:
        """Raise Broken unless something that happened to all tables, or to every table, justifies the end."""
        if self._justified(ended, None):
            self.outcome.refused = ended
            return
        raise Broken(f"{ended} {self._tail()}")

    def _justified(self, reason: str, table: str | None) -> bool:
        return any(
            re.search(pattern, reason, re.IGNORECASE)
            for act in self._happened
            if act.table in (None, table) or table is None
            for pattern in act.justifies
        )

    def _prove(self) -> None:
        """Raise Broken unless each topic is its table, or the table is stopped for a reason that is true."""
        with connect(self._dsn, name="fuzz", reading=True) as connection:
            left = dict.fromkeys(self.script.tables, "")
            deadline = time.monotonic() + _SETTLES
            while True:
                states = self._states()
                left = {table: how for table in left if (how := self._judge(connection, table, states.get(table)))}
                if not left:
                    return
                if time.monotonic() > deadline:
                    raise Broken("; ".join(f"{table}: {how}" for table, how in left.items()))
                time.sleep(0.3)
                self._catch_up()
                if self.outcome.refused:
                    return

    def _read_anew(self) -> None:
        """Follow the remedy of tables that are stopped; one may be stopped again, for the same reason."""
        for table, state in self._states().items():
            if state.stopped is not None:
                with self._tolerated("a request"):
                    send_request(self._writer, SnapshotRequest(table=table, anew=True))
        self._catch_up()
        if not self.outcome.refused:
            self._prove()

    def _states(self) -> dict[str, SnapshotState]:
        state = self._positions.sources().get("main")
        return {} if state is None else dict(state.snapshots)

    def _judge(self, connection: psycopg.Connection[Any], table: str, state: SnapshotState | None) -> str:
        """Return what is wrong with a table, nothing where it is right."""
        if state is None:
            return "nothing is recorded of it"
        if state.stopped is not None:
            if not self._justified(state.stopped, table):
                return f"it was stopped, and nothing that happened to it was a reason to: {state.stopped}"
            self.outcome.stopped.append(state.stopped)
            return ""
        schema, _, name = table.partition(".")
        try:
            how = difference(connection, self.settings, state.topic, (schema, name))
        except psycopg.Error as error:
            how = str(error)
        if how == INCOMPLETE and table not in self._completed:
            self._completed.add(table)
            send_request(self._writer, SnapshotRequest(table=table))
        self.outcome.equal += not how
        return how

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-6:])

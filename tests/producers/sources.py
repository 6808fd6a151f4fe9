"""A source for the tests: settings on a database of the test's own, its producer in a thread, and waiting for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from consumers.testing.settling import until_shown
from consumers.testing.waiting import PATIENCE, until
from infra.postgres.heartbeat import beat
from infra.service import log
from infra.settings.model import DatabaseSettings, KafkaSettings, Settings
from infra.state.positions import SourceState, read_sources
from producers.session.commits import Restart
from producers.session.loop import USUAL, Session, Timing
from producers.session.opening import Start, open_session
from producers.session.service import produce
from producers.session.slot_monitor import slot_monitor_of
from producers.source import slots
from schemas.positions import Lsn
from schemas.topics import positions_topic, table_topic
from tests.producers.folding import Record, folded_rows, read_topic, require_order, table_rows


def settings_for(
    bootstrap_servers: str, prefix: str, dsn: str, *tables: str, partitions: int = 2, source: str = "main", **more: Any
) -> Settings:
    """Return settings that capture `tables`, all in gitlab_main; `more` goes into the database's section."""
    return Settings(
        prefix=prefix,
        kafka=KafkaSettings(bootstrap_servers=bootstrap_servers, partitions=partitions),
        databases={source: database_section(dsn, *tables, **more)},
    )


def database_section(dsn: str, *tables: str, **more: Any) -> DatabaseSettings:
    mapped = {table: "gitlab_main" for table in tables if not set(table) & set("*?")}
    defaults = {"gitlab_schemas": ["gitlab_main"], "table_schemas": mapped, "tables": tables}
    return DatabaseSettings.model_validate({"dsn": dsn, **defaults, **more})


def capturing(settings: Settings, *tables: str, source: str = "main") -> Settings:
    """Return the same settings with other tables captured."""
    database = settings.database(source)
    mapped = {**database.table_schemas, **dict.fromkeys(tables, "gitlab_main")}
    changed = database.model_copy(update={"tables": tables, "table_schemas": mapped})
    return settings.model_copy(update={"databases": {**settings.databases, source: changed}})


def topic_of(settings: Settings, table: str) -> str:
    schema, _, name = table.partition(".")
    return table_topic(settings.prefix, "gitlab_main", "main", schema, name)


OFTEN = Timing(heartbeat_seconds=0.3)
"""The timing of a producer that looks at the catalog often."""


@dataclass
class Source:
    """A source under test: writes to its database, and reads its topics and records."""

    settings: Settings
    connection: psycopg.Connection[Any]
    name: str = "main"
    timing: Timing = USUAL

    def state(self) -> SourceState:
        """Return the state that Kafka shows now, for polling; once a producer has ended, use `recorded`."""
        return read_sources(self.settings).get(self.name, SourceState())

    def recorded(self) -> SourceState:
        """Return the recorded state, including commits that Kafka has accepted but does not show yet."""
        until_shown(self.settings.kafka, positions_topic(self.settings.prefix))
        return self.state()

    @property
    def slot(self) -> str:
        return slots.slot_name(self.settings, self.name, self.settings.database(self.name))

    def slot_state(self) -> slots.SlotState:
        state = slots.read(self.connection, self.slot)
        assert state is not None
        return state

    def drop_slot(self) -> None:
        """Drop the slot, once the server has noticed that its reader is gone."""
        until(lambda: self.slot_state().active_pid is None, "the slot to be free")
        slots.drop(self.connection, self.slot)

    def records(self, table: str) -> list[Record]:
        return read_topic(self.settings, topic_of(self.settings, table))

    def beat(self, check: Callable[[], None]) -> Lsn:
        """Write a heartbeat, once a producer has created its table."""

        def made() -> bool:
            check()
            return self.connection.execute("SELECT to_regclass('headrace.heartbeat')").fetchone() != (None,)

        until(made, "headrace's own tables")
        return beat(self.connection)

    def caught_up(self, check: Callable[[], None] = lambda: None) -> None:
        """Wait until all earlier writes are published, and all tables copied and re-snapshotted; `check` may raise.

        A table that was copied, and is to be re-snapshotted from scratch by the session that begins next, is not: its
        topic is about to be emptied. One that is stopped waits for a later start.
        """
        lsn = self.beat(check)

        def there() -> bool:
            check()
            state = self.state()
            tables = state.snapshots.values()
            copied = bool(tables) and all(each.done and (each.stopped or not each.from_scratch) for each in tables)
            again = any((each.reread or each.asked) and not each.stopped for each in tables)
            return copied and not again and state.stream is not None and state.stream.commit_lsn >= lsn

        until(there, f"{self.name} at {lsn}")

    def passes(self, check: Callable[[], None] = lambda: None) -> None:
        """Wait until the stream has passed all earlier writes, whether or not tables are copied."""
        lsn = self.beat(check)

        def there() -> bool:
            check()
            stream = self.state().stream
            return stream is not None and stream.commit_lsn >= lsn

        until(there, f"the stream at {lsn}")

    def require_equal(
        self, table: str, columns: tuple[str, ...] | None = None, *, broker_died: bool = False
    ) -> list[Record]:
        """Fail unless the topic, folded, is the table, in order (see `require_order`); return its records."""
        records = self.records(table)
        require_order(records, broker_died=broker_died)
        folded, rows = set(folded_rows(records, columns)), set(table_rows(self.connection, table, columns))
        assert folded == rows, f"only in the topic: {sorted(folded - rows)}, in the table: {sorted(rows - folded)}"
        return records


class Running:
    """A producer in a thread of this process; a `session` with a fault is its only session."""

    def __init__(self, source: Source, session: type[Session] | None = None) -> None:
        self.source = source
        self._session = session
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self.restart: Restart | None = None
        self._thread = threading.Thread(target=self._run, name=f"produce {source.name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            if self._session is None:
                produce(self.source.settings, self.source.name, self.stop, self.source.timing)
                return
            slot_monitor = slot_monitor_of(self.source.settings, self.source.name, log.get())
            settings, timing = self.source.settings, self.source.timing
            start = Start(settings, self.source.name, "a test", self.stop, slot_monitor, timing=timing)
            with open_session(start, self._session) as session:
                self.restart = session if isinstance(session, Restart) else session.work()
        except BaseException as error:
            self.error = error

    def check(self) -> None:
        """Raise the error that ended the producer."""
        if self.error is not None:
            raise self.error
        assert self._thread.is_alive(), "the producer ended"

    def caught_up(self) -> None:
        self.source.caught_up(self.check)

    def ended(self) -> BaseException | None:
        """Wait for the end; return the error that it raised."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        return self.error

    def restarts(self) -> Restart | None:
        """Wait for the end of the session; return the reason for a restart."""
        assert self.ended() is None
        return self.restart


@contextmanager
def running(source: Source, session: type[Session] | None = None) -> Iterator[Running]:
    """Run a producer; stop it at the end, and fail if it has failed."""
    producer = Running(source, session)
    try:
        yield producer
    finally:
        producer.stop.set()
        producer._thread.join(PATIENCE)
    if producer.error is not None:
        raise producer.error
    assert not producer._thread.is_alive()


def copy_all(source: Source) -> None:
    """Run a producer until it has caught up, and stop it."""
    with running(source) as producer:
        producer.caught_up()

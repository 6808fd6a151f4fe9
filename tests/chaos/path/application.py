"""The application: sessions that write at random and log the outcome of each transaction.

They insert, update and delete rows, change keys, truncate, use savepoints and large transactions, and alter the table.
Some sessions wait at each commit for the synchronous standby, whether it is running or not. A session that loses its
server reconnects until it succeeds.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import psycopg

from tests.chaos.path.histories import Outcome

KEYS: Final = 400
"""Rows that all sessions share; large transactions write others."""
_LARGE_KEYS: Final = (10_000, 10_600)
_LARGE_ROWS: Final = (50, 400)
_WAITING: Final = 3
_LOCAL: Final = 4
_LOCK_MS: Final = 1_500

_STATES: Final = (*[("import_skipped", 2)] * 4, ("import_skipped", 5), ("default", None), ("import_done", None))
_UPSERT: Final = (
    "INSERT INTO public.container_repositories AS r (id, project_id, name, migration_state, migration_skipped_reason)"
    " VALUES (%(key)s, 1, %(name)s, %(state)s, %(reason)s) ON CONFLICT (id) DO UPDATE SET"
    " (name, migration_state, migration_skipped_reason) ="
    " (excluded.name, excluded.migration_state, excluded.migration_skipped_reason)"
)
_UPDATE: Final = (
    "UPDATE public.container_repositories SET name = %(name)s, migration_state = %(state)s,"
    " migration_skipped_reason = %(reason)s WHERE id = %(key)s"
)
_TOUCH: Final = "UPDATE public.container_repositories SET name = %(name)s WHERE id = %(key)s"
_DELETE: Final = "DELETE FROM public.container_repositories WHERE id = %(key)s"
_REKEY: Final = (
    "UPDATE public.container_repositories SET id = %(other)s, name = %(name)s WHERE id = %(key)s"
    " AND NOT EXISTS (SELECT FROM public.container_repositories WHERE id = %(other)s)"
)
_LARGE: Final = (
    "INSERT INTO public.container_repositories AS r (id, project_id, name, migration_state, migration_skipped_reason)"
    " SELECT k, 1, %(name)s || ' ' || k, %(state)s, %(reason)s FROM generate_series(%(first)s, %(last)s) k"
    " ON CONFLICT (id) DO UPDATE SET (name, migration_state, migration_skipped_reason) ="
    " (excluded.name, excluded.migration_state, excluded.migration_skipped_reason)"
)
_LARGE_DELETE: Final = "DELETE FROM public.container_repositories WHERE id BETWEEN %(first)s AND %(last)s"
_KINDS: Final = {_UPSERT: 40, _UPDATE: 20, _TOUCH: 15, _DELETE: 15, _REKEY: 10}
"""Statement → percentage."""


class Application:
    """Sessions that write until `stop`; `log` has each transaction's name and outcome."""

    def __init__(self, dsn: str, seed: int, *, rate: float, label: str = "") -> None:
        """`rate` is transactions per second over all sessions; their names start with `label`."""
        self.log: dict[str, Outcome] = {}
        self.counts: Counter[str] = Counter()
        self.error: BaseException | None = None
        self.longest_commit = 0.0
        self.forms = 0
        """Number of attempts to alter the table; each may re-snapshot its rows."""
        self._dsn = dsn
        self._stop = threading.Event()
        self._lock = threading.Lock()
        pause = (_WAITING + _LOCAL) / rate
        modes = ["on"] * _WAITING + ["local"] * _LOCAL
        sessions = [
            _Session(self, f"{label}{mode}{number}", mode, random.Random(f"{seed}/{number}"), pause)
            for number, mode in enumerate(modes)
        ]
        self._forms = _Forms(self, f"{label}forms", "local", random.Random(f"{seed}/forms"), 6.0)
        self._threads: list[threading.Thread] = []
        for session in sessions:
            self._start(session)

    def change_forms(self) -> None:
        """Start altering and truncating the table: a truncate during the snapshot restarts it."""
        self._start(self._forms)

    @property
    def stopping(self) -> threading.Event:
        return self._stop

    def connect(self, mode: str) -> psycopg.Connection[Any]:
        """Open a session whose commits wait for the standby, or do not, according to `mode`."""
        options = f"-c synchronous_commit={mode} -c lock_timeout={_LOCK_MS} -c deadlock_timeout=200"
        return psycopg.connect(self._dsn, application_name=f"application {mode}", options=options, connect_timeout=5)

    def note(self, name: str, outcome: Outcome, kind: str, seconds: float = 0.0) -> None:
        """Log a transaction's outcome."""
        with self._lock:
            self.log[name] = outcome
            self.counts[outcome.value] += 1
            self.counts[kind] += outcome is Outcome.ACKNOWLEDGED
            if outcome is Outcome.ACKNOWLEDGED:
                self.longest_commit = max(self.longest_commit, seconds)

    def check(self) -> None:
        """Raise the error that ended a session, if any."""
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """Have no session start another transaction."""
        self._stop.set()

    def join(self) -> None:
        """Wait until each session has its last answer; raise the error that ended one, if any."""
        self._stop.set()
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive(), f"{thread.name} got no answer"
        self.check()

    def _start(self, session: _Session) -> None:
        name = f"application {session.name}"
        thread = threading.Thread(target=self._guarded, args=(session,), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _guarded(self, session: _Session) -> None:
        try:
            session.run()
        except BaseException as error:
            self.error = error


class _Session:
    """One session, over any number of connections."""

    def __init__(self, owner: Application, name: str, mode: str, draw: random.Random, pause: float) -> None:
        self.name = name
        self.draw = draw
        self._owner = owner
        self._mode = mode
        self._pause = pause
        self._number = 0

    def run(self) -> None:
        """Write until the application stops."""
        stopping = self._owner.stopping
        while not stopping.is_set():
            # Whatever a server's failure does to a session, it restarts.
            with contextlib.suppress(psycopg.Error), self._owner.connect(self._mode) as connection:
                while not stopping.wait(self.draw.expovariate(1 / self._pause)):
                    self._transaction(connection)
            stopping.wait(0.3)

    def _transaction(self, connection: psycopg.Connection[Any]) -> None:
        self._number += 1
        name = f"{self.name}.{self._number}"
        kind = "a transaction"
        try:
            connection.execute("INSERT INTO history.transactions VALUES (%s)", (name,))
            kind = self.write(connection, name)
        except psycopg.Error:
            # The commit was never sent.
            self._owner.note(name, Outcome.ROLLED_BACK, kind)
            connection.rollback()
            return
        if self.draw.random() < 0.07:
            self._owner.note(name, Outcome.ROLLED_BACK, kind)
            connection.rollback()
            return
        began = time.monotonic()
        try:
            connection.commit()
        except psycopg.Error:
            self._owner.note(name, Outcome.IN_DOUBT, kind)
            raise
        self._owner.note(name, Outcome.ACKNOWLEDGED, kind, time.monotonic() - began)

    def write(self, connection: psycopg.Connection[Any], name: str) -> str:
        """Execute a transaction's writes; return its kind."""
        draw = self.draw
        if draw.random() < 0.01:
            first = draw.randrange(*_LARGE_KEYS)
            statement = _LARGE if draw.random() < 0.7 else _LARGE_DELETE
            values = {"first": first, "last": first + draw.randrange(*_LARGE_ROWS), **self._state(name)}
            connection.execute(statement.encode(), values)
            return "large"
        kinds, weights = list(_KINDS), list(_KINDS.values())
        # Mostly in key order: an occasional deadlock is just another rollback.
        keys = [draw.randrange(KEYS) for _ in range(draw.choice((1, 1, 1, 2, 4)))]
        for number, key in enumerate(sorted(keys) if draw.random() < 0.9 else keys):
            (statement,) = draw.choices(kinds, weights)
            values = {"key": key, "other": draw.randrange(KEYS), **self._state(f"{name}.{number}")}
            with _savepoint(connection, draw) as undone:
                connection.execute(statement.encode(), values)
                if undone:
                    raise psycopg.Rollback
        return "small"

    def _state(self, name: str) -> dict[str, object]:
        state, reason = self.draw.choice(_STATES)
        return {"name": name, "state": state, "reason": reason}


class _Forms(_Session):
    """The session that alters and truncates the table from time to time."""

    def __init__(self, owner: Application, name: str, mode: str, draw: random.Random, pause: float) -> None:
        super().__init__(owner, name, mode, draw, pause)
        self._altered = False
        self._after: tuple[str] | None = None
        """The WAL position after the last alteration, until the slot has confirmed it."""

    def write(self, connection: psycopg.Connection[Any], name: str) -> str:
        """Alter or truncate the table; return which."""
        draw = self.draw
        kind = draw.random()
        if kind < 0.25:
            connection.execute("TRUNCATE public.container_repositories")
            return "truncate"
        if not self._slot_is_after_last_alteration(connection):
            connection.execute(_UPSERT.encode(), {"key": draw.randrange(KEYS), **self._state(name)})
            return "small"
        columns = [
            column
            for (column,) in connection.execute(
                "SELECT attname::text FROM pg_attribute WHERE attrelid = 'public.container_repositories'::regclass"
                " AND attname LIKE 'extra%' AND NOT attisdropped"
            )
        ]
        # A row between alterations: a column dropped and another added at once could also be a rename. So could they be
        # if a producer starts with a catalog that is ahead of its stream by both.
        self._owner.forms += 1
        self._altered = True
        if columns and kind < 0.5:
            connection.execute(f"ALTER TABLE public.container_repositories DROP COLUMN {draw.choice(columns)}".encode())
        elif kind < 0.75:
            column = f"extra_{name.rpartition('.')[2]}"
            default = draw.choice(("text", "bigint", "integer NOT NULL DEFAULT 7"))
            connection.execute(f"ALTER TABLE public.container_repositories ADD COLUMN {column} {default}".encode())
        else:
            connection.execute(b"DROP INDEX IF EXISTS public.by_state")
            connection.execute(b"CREATE INDEX by_state ON public.container_repositories (migration_state)")
        connection.execute(_UPSERT.encode(), {"key": draw.randrange(KEYS), **self._state(name)})
        return "form"

    def _slot_is_after_last_alteration(self, connection: psycopg.Connection[Any]) -> bool:
        if self._altered:
            # After the transaction of the alteration, whatever became of it.
            self._after, self._altered = connection.execute("SELECT pg_current_wal_insert_lsn()").fetchone(), False
        if self._after is None:
            return True
        passed = "SELECT coalesce(bool_and(confirmed_flush_lsn >= %s), false) FROM pg_replication_slots"
        if connection.execute(passed + " WHERE slot_type = 'logical'", self._after).fetchone() == (True,):
            self._after = None
        return self._after is None


@contextlib.contextmanager
def _savepoint(connection: psycopg.Connection[Any], draw: random.Random) -> Iterator[bool]:
    """Yield whether to roll the block back, to a savepoint in that case; some other blocks use a savepoint too."""
    kind = draw.random()
    if kind > 0.3:
        yield False
        return
    with contextlib.suppress(psycopg.Rollback), connection.transaction():
        yield kind < 0.12

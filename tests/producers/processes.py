"""A producer as a process of its own, to be killed, stopped and raced; and random work for its database."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from consumers.testing.waiting import PATIENCE, until
from infra.settings.model import Settings

ROOT = Path(__file__).parents[2]


def write_settings(settings: Settings, path: Path) -> Path:
    """Write the settings file that a process reads."""
    (name, database), *_ = settings.databases.items()
    tables = ", ".join(f"'{table}'" for table in database.tables)
    spills = f"spill_directory = '{database.spill_directory}'" if database.spill_directory else ""
    mapped = "\n".join(f"'{table}' = '{schema}'" for table, schema in database.table_schemas.items())
    path.write_text(
        f"""
        prefix = '{settings.prefix}'
        [kafka]
        bootstrap_servers = '{settings.kafka.bootstrap_servers}'
        partitions = {settings.kafka.partitions}
        [databases.{name}]
        dsn = '{database.dsn.get_secret_value()}'
        gitlab_schemas = ['gitlab_main']
        tables = [{tables}]
        allow_unlimited_wal = true
        {spills}
        [databases.{name}.snapshot]
        chunk_rows = {database.snapshot.chunk_rows}
        workers = {database.snapshot.workers}
        [databases.{name}.table_schemas]
        {mapped}
        """
    )
    return path


class Process:
    """`headrace produce main`; its log goes to `log`."""

    def __init__(self, config: Path, *options: str) -> None:
        self.log = config.with_suffix(".log")
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "headrace", "produce", "main", "--config", str(config), *options],
                cwd=ROOT,
                stderr=log,
                stdout=log,
            )

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def check(self) -> None:
        """Fail if it has ended."""
        assert self._process.poll() is None, self.log.read_text()

    @property
    def has_ended(self) -> bool:
        """Whether it is gone already."""
        return self._process.poll() is not None

    def ended(self) -> int:
        """Wait for the end; return the exit code."""
        return self._process.wait(PATIENCE)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait(PATIENCE)


@contextmanager
def producing(config: Path, *options: str) -> Iterator[Process]:
    """A process that is terminated at the end, however the test ends."""
    process = Process(config, *options)
    try:
        yield process
    finally:
        process.kill()


SCHEMA = "CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL, v text)"


_PAUSE = 0.002
"""Seconds between two transactions, so that the producer is tested, not the machine."""

LARGE_KEYS = 100_000
LARGE_ROWS = 300
"""The first key of large transactions, and the number of rows in each."""


class Workload:
    """A thread that inserts, updates, deletes, moves keys, rolls back and rarely truncates; deterministic per seed.

    With `large`, every so many transactions one has more rows than the server keeps in 64 kB of memory. A lost
    connection is reopened.
    """

    def __init__(self, dsn: str, seed: int, *, keys: int = 200, truncates: bool = True, large: int = 0) -> None:
        self._dsn = dsn
        self._random = random.Random(seed)
        self._keys = keys
        self._truncates = truncates
        self._large_every = large
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.transactions = 0
        self.large_ones = 0
        """The number of committed large transactions."""
        self.error: BaseException | None = None

    def __enter__(self) -> Workload:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._large_every:
            until(lambda: self.large_ones > 0 or self.error is not None, "a large transaction")
        self._stop.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self._dsn) as connection:
                    while not self._stop.is_set():
                        if self._large_every and self.transactions % self._large_every == self._large_every - 1:
                            self._large(connection)
                        else:
                            self._transaction(connection)
                        self.transactions += 1
                        self._stop.wait(_PAUSE)
                self._stop.wait(0.1)
        except BaseException as error:
            self.error = error

    def _transaction(self, connection: psycopg.Connection) -> None:
        draw = self._random
        for _ in range(draw.choice((1, 1, 2, 5))):
            if draw.random() < 0.2:
                with contextlib.suppress(psycopg.Rollback), connection.transaction():  # a savepoint
                    self._statement(connection)
                    if draw.random() < 0.5:
                        raise psycopg.Rollback
            else:
                self._statement(connection)
        if draw.random() < 0.1:
            connection.rollback()
        else:
            connection.commit()

    def _large(self, connection: psycopg.Connection) -> None:
        draw = self._random
        first = LARGE_KEYS + draw.randrange(2) * LARGE_ROWS
        rows = range(first, first + LARGE_ROWS)
        connection.execute(
            "INSERT INTO t SELECT i, 0, repeat(md5(i::text), 8) FROM generate_series(%s::int, %s) i"
            " ON CONFLICT (id) DO UPDATE SET n = t.n + 1",
            (rows[0], rows[-1]),
        )
        with contextlib.suppress(psycopg.Rollback), connection.transaction():  # a savepoint
            connection.execute("UPDATE t SET n = -1, v = v || 'x' WHERE id BETWEEN %s AND %s", (rows[0], rows[-1]))
            if draw.random() < 0.7:
                raise psycopg.Rollback
        connection.execute("DELETE FROM t WHERE id BETWEEN %s AND %s AND id %% 3 = 0", (rows[0], rows[-1]))
        self._statement(connection)
        if draw.random() < 0.2:
            connection.rollback()
        else:
            connection.commit()
            self.large_ones += 1

    def _statement(self, connection: psycopg.Connection) -> None:
        draw = self._random
        key, other = draw.randrange(self._keys), draw.randrange(self._keys)
        kind = draw.random()
        if self._truncates and kind < 0.001:
            connection.execute("TRUNCATE t")
        elif kind < 0.4:
            connection.execute(
                "INSERT INTO t VALUES (%s, 1, repeat(md5(%s::text), %s)) ON CONFLICT (id) DO UPDATE SET n = t.n + 1",
                (key, other, draw.choice((1, 5))),
            )
        elif kind < 0.7:
            connection.execute("UPDATE t SET n = n + 1 WHERE id BETWEEN %s AND %s", (key, key + draw.choice((0, 9))))
        elif kind < 0.85:
            connection.execute("DELETE FROM t WHERE id = %s", (key,))
        else:
            connection.execute(
                "UPDATE t SET id = %s WHERE id = %s AND NOT EXISTS (SELECT 1 FROM t WHERE id = %s)", (other, key, other)
            )

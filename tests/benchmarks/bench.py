"""The context of every benchmark: the servers, databases filled once, and a directory for its files."""

from __future__ import annotations

import contextlib
import copy
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, LiteralString, TypeVar

import psycopg
import tomli_w
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from rich.console import Console

from infra.demo.gitlab import build
from infra.kafka.topics import delete_topics
from infra.postgres.control import recorded_prefix
from infra.settings.file import load_settings
from infra.settings.model import Settings
from infra.stack import EmbeddedStack
from infra.stack.postgresql.databases import drop_slots
from infra.stack.postgresql.server import EmbeddedPostgres
from infra.stack.processes.keeper import Guarded
from infra.state.positions import Positions
from producers.source.slots import slot_name
from schemas.errors import HeadraceError
from schemas.topics import positions_topic, table_topic
from tests.benchmarks.figures import Figure, Target

TABLE: Final = "public.container_repositories"
SOURCE: Final = "main"
PATIENCE: Final = 900.0
"""Seconds after which a run counts as failed."""

# Nothing for a migration to change, and no trigger that would slow down every update.
_PLAIN: Final = (
    "DROP SCHEMA proof CASCADE",
    "UPDATE container_repositories SET migration_skipped_reason = 1 WHERE migration_skipped_reason = 2",
    "VACUUM (FREEZE, ANALYZE) container_repositories",
)

T = TypeVar("T")


class Bench:
    """A session of benchmarks on one stack; `rows` is the table's size, `runs` the number of runs per median."""

    def __init__(self, stack: EmbeddedStack, place: Path, console: Console, *, rows: int, runs: int) -> None:
        self.stack = stack
        self.place = place
        self.rows = rows
        self.runs = runs
        self._console = console
        self._made: dict[Hashable, Any] = {}
        self._began = time.monotonic()

    def with_postgres(self, postgres: EmbeddedPostgres) -> Bench:
        """Return a bench with the same Kafka whose databases are on another server."""
        stack = copy.copy(self.stack)
        stack.postgres = postgres
        return Bench(stack, self.place, self._console, rows=self.rows, runs=self.runs)

    def say(self, line: str) -> None:
        """Print a line of progress."""
        self._console.print(f"[dim]{time.monotonic() - self._began:6.0f} s[/dim]  {line}", highlight=False)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` returned at the first call with this `key`."""
        if key not in self._made:
            self._made[key] = make()
        found: T = self._made[key]
        return found

    def repeated(self, what: str, run: Callable[[int], T], say: Callable[[T], str]) -> list[T]:
        """Do all runs of a measurement and print each one's outcome."""
        outcomes = []
        for number in range(self.runs):
            outcomes.append(run(number))
            self.say(f"{what}, run {number + 1} of {self.runs}: {say(outcomes[-1])}")
        return outcomes

    def database(self, name: str, rows: int) -> str:
        """Return the dsn of a database with `rows` container repositories that need no change; created once."""

        def make() -> str:
            dsn = self.stack.postgres.create_database(f"bench_{name}")
            with self.sql(dsn) as connection:
                build(connection, rows)
                for statement in _PLAIN:
                    connection.execute(statement)
                connection.execute("CHECKPOINT")
            self.say(f"database {name}: {rows:,} rows")
            return dsn

        return self.once(("database", name), make)

    def drop_database(self, name: str) -> None:
        """Drop a database that `database` returned, for its space on disk; the next call creates it again."""
        self._made.pop(("database", name), None)
        self.stack.postgres.drop_database(f"bench_{name}")

    @contextlib.contextmanager
    def sql(self, dsn: str) -> Iterator[psycopg.Connection[Any]]:
        """Yield an autocommit connection."""
        with contextlib.closing(psycopg.connect(dsn, autocommit=True, application_name="bench")) as connection:
            yield connection

    def kept_private(self, name: str, text: str) -> Path:
        """Write a file that only its owner can read: it may hold a password, which must not be on a command line."""
        path = self.place / name
        path.touch(mode=0o600)
        path.write_text(text, encoding="utf-8")
        return path

    def for_libpq(self, dsn: str) -> tuple[str, dict[str, str]]:
        """Return a database as PostgreSQL's programs take it, without its password, and the environment that has it."""
        parts = conninfo_to_dict(dsn)
        file = self.kept_private("pgpass", f"*:*:*:*:{parts.pop('password')}\n")
        return make_conninfo("", **parts), {"PGPASSFILE": str(file)}

    def start(self, name: str, words: list[str | Path], env: Mapping[str, str] | None = None) -> Guarded:
        """Start a process whose output goes to a file of the same name; `env` is added to its environment."""
        return self.stack.keeper.start(words, log=self.place / f"{name}.log", cwd=Path(__file__).parents[2], env=env)

    def watched(self, what: str, *processes: Guarded, every: float = 0.02) -> Iterator[None]:
        """Yield every `every` seconds while the caller waits; raise if a process fails, or on timeout."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            yield
            for process in processes:
                if process.poll():
                    raise HeadraceError(f"{what} ended by itself: {process.last_lines()}", remedy="")
            time.sleep(every)
        raise HeadraceError(f"{what} did not finish within {PATIENCE:.0f} s", remedy="try fewer --rows")


class Site:
    """headrace's settings, topics and slot for one database, under a separate prefix."""

    touch: LiteralString = f"UPDATE {TABLE} SET updated_at = now() WHERE id = 1"
    """A statement that changes one row of a captured table."""

    def __init__(
        self,
        bench: Bench,
        dsn: str,
        prefix: str,
        migrations: Mapping[str, Mapping[str, object]] | None = None,
        tables: Sequence[str] = (TABLE,),
        *,
        plugin_paths: Sequence[Path] = (),
        snapshot: Mapping[str, object] | None = None,
        spill_directory: Path | None = None,
        partitions: int | None = None,
    ) -> None:
        """`tables` are names or patterns, all of gitlab schema gitlab_main; `snapshot` and `spill_directory` are the
        source's settings, and `partitions` is that of Kafka's topics. `topics` has to be set for patterns.
        """
        self.bench = bench
        self.dsn = dsn
        self.prefix = prefix
        self.tables = tuple(tables)
        self.file = bench.kept_private(
            f"{prefix}.toml",
            tomli_w.dumps(
                {
                    "prefix": prefix,
                    "plugin_paths": list(map(str, plugin_paths)),
                    "kafka": {
                        "bootstrap_servers": bench.stack.endpoints.bootstrap_servers,
                        **({"partitions": partitions} if partitions else {}),
                    },
                    "databases": {
                        SOURCE: {
                            "dsn": dsn,
                            "gitlab_schemas": ["gitlab_main", "gitlab_shared"],
                            "tables": list(tables),
                            "table_schemas": dict.fromkeys(tables, "gitlab_main"),
                            "snapshot": snapshot or {},
                            **({"spill_directory": str(spill_directory)} if spill_directory else {}),
                        }
                    },
                    "migrations": migrations or {},
                }
            ),
        )
        self.settings: Settings = load_settings(self.file)
        with bench.sql(dsn) as connection:
            if recorded_prefix(connection) not in (None, prefix):
                # A ledger belongs to one prefix's topics: this one starts without.
                connection.execute("DROP SCHEMA headrace CASCADE")
        self.topics = [table_topic(prefix, "gitlab_main", SOURCE, *table.split(".")) for table in tables]
        self.slot = slot_name(self.settings, SOURCE, self.settings.database(SOURCE))

    @property
    def topic(self) -> str:
        """The topic of its first table."""
        return self.topics[0]

    def command(self, *words: str) -> list[str | Path]:
        """Return the command line of a headrace command."""
        return [sys.executable, "-m", "headrace", *words, "--config", self.file]

    def positions(self) -> Positions:
        """Return a reader of the source's positions."""
        return Positions(self.prefix, self.settings.kafka)

    def drop_slot(self) -> None:
        """Drop the database's slot; the topics stay."""
        drop_slot(self.bench, self.dsn, self.slot)

    def drop(self) -> None:
        """Remove the slot and the topics."""
        self.drop_slot()
        own = [positions_topic(self.prefix), f"{self.prefix}.schemas"]
        delete_topics(self.settings.kafka, [*self.topics, *own])


def drop_slot(bench: Bench, dsn: str, slot: str) -> None:
    """Drop a replication slot, ending its reader; idempotent."""
    query = psycopg.sql.SQL("SELECT slot_name, active_pid FROM pg_replication_slots WHERE slot_name = {}")
    with bench.sql(dsn) as connection:
        drop_slots(connection, query.format(psycopg.sql.Literal(slot)))


def median(values: Iterable[float | None]) -> float:
    """Return the median of the measured values."""
    return statistics.median(value for value in values if value is not None)


def median_or_none(values: Iterable[float | None]) -> float | None:
    """Return the median, or None if nothing was measured because the peer is unavailable."""
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def less_is_better(
    name: str,
    unit: str,
    ours: Iterable[float | None],
    theirs: Iterable[float | None],
    target: Target | None = None,
) -> Figure:
    """Return the figure of our runs' median and, if there are any, that of a peer's runs; less is better."""
    return Figure(name, median(ours), unit, peer=median_or_none(theirs), target=target, smaller=True)

"""Reports tables in a database that no longer owns their gitlab schema: whether they are guarded, and stray writes.

A write there is in no topic, and after the promotion in no other database. A guard on the table refuses it
(`infra.guard.write_guard`); a producer that reads the table's changes counts it. Without either, writes are unknown.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import psycopg

from infra.cli.advice import Advice
from infra.guard import write_guard
from infra.postgres import connect
from infra.postgres.control import database_name, owners
from infra.settings.model import Settings
from infra.state.positions import SourceState, StrayState
from schemas.errors import HeadraceError
from schemas.gitlab_schemas import PER_DATABASE
from schemas.lazy_dataclass import dataclass

T = TypeVar("T")

_NAMED: Final = 3
"""How many tables a line names."""
_READ: Final = "SELECT active FROM pg_catalog.pg_replication_slots WHERE slot_name = %s"


@dataclass(frozen=True)
class GivenTable:
    """A table of a gitlab schema that another database owns.

    `guarded`: it refuses writes. `watched`: a producer reads its changes now. `writes` is None if unknown; if the table
    is no longer watched, it is the count until then. Times are ISO 8601, in UTC.
    """

    table: str
    guarded: bool
    watched: bool
    writes: int | None = None
    inserts: int = 0
    updates: int = 0
    deletes: int = 0
    truncates: int = 0
    since: str | None = None
    last: str | None = None


@dataclass(frozen=True)
class GivenAway:
    """A gitlab schema that `owner` owns and of which `database` still has tables."""

    database: str
    gitlab_schema: str
    owner: str
    tables: tuple[GivenTable, ...]

    def document(self) -> dict[str, Any]:
        """Return it in the form of `status --json`."""
        return {
            "database": self.database,
            "gitlab_schema": self.gitlab_schema,
            "owner": self.owner,
            "tables": [asdict(table) for table in self.tables],
        }


def survey(settings: Settings, sources: Mapping[str, SourceState]) -> list[GivenAway]:
    """Return the gitlab schemas that databases of the settings have but do not own; `sources` are producers' records.

    A database that does not answer is left out, as are a standby and a database recorded under another name, such as a
    promoted copy that is not open yet.
    """

    def look(connection: psycopg.Connection[Any], name: str) -> Iterator[GivenAway]:
        return _in_database(connection, settings, name, sources.get(name, SourceState()))

    return _asked(settings, look)


def lines(given: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines for the operator about a `GivenAway.document`: stray writes, and tables where writes are unknown."""
    for problem, _ in _problems(given):
        yield f"{given['database']}: {problem}; see `headrace check`"


def advise(settings: Settings, sources: Mapping[str, SourceState]) -> Iterator[Advice]:
    """Yield the same for `headrace check`, each with a remedy, and the tables that lack a guard.

    Those are reported if other tables of their gitlab schema have one: they were created later, perhaps before a move.
    """
    for each in survey(settings, sources):
        for problem, remedy in _problems(each.document()):
            yield Advice(f"databases.{each.database}", problem, (), remedy)
    yield from _asked(settings, lambda connection, name: _lacking(connection, settings, name))


def _lacking(connection: psycopg.Connection[Any], settings: Settings, database: str) -> Iterator[Advice]:
    if (fault := write_guard.fault(connection)) is not None:
        problem = f"{fault.problem}: no guarded table can be written"
        yield Advice(f"databases.{database}", problem, (), fault.remedy, blocks=True)
    guarded = write_guard.installed(connection)
    lacking: dict[str, list[str]] = {}
    for table, gitlab_schema in write_guard.tables_in(
        connection, settings, database, set(write_guard.present(connection).values())
    ).items():
        if guarded.get(table) != gitlab_schema:
            lacking.setdefault(gitlab_schema, []).append(table)
    for gitlab_schema, tables in lacking.items():
        problem = (
            f"{_some(tables)} {'lacks' if len(tables) == 1 else 'lack'} a working guard, and other tables of"
            f" {gitlab_schema} have one"
        )
        yield Advice(f"databases.{database}", problem, (), f"install it with {_install(gitlab_schema, database)}")


def _asked(settings: Settings, look: Callable[[psycopg.Connection[Any], str], Iterator[T]]) -> list[T]:
    """Return what `look` finds in each database that answers, accepts writes and is recorded under its own name."""
    found: list[T] = []
    for name, database in settings.databases.items():
        with contextlib.suppress(HeadraceError):
            with connect.session(database, name="given away") as connection:
                if not connect.is_standby(connection) and database_name(connection) == name:
                    found += list(look(connection, name))
    return found


def _in_database(
    connection: psycopg.Connection[Any], settings: Settings, name: str, source: SourceState
) -> Iterator[GivenAway]:
    away = {
        gitlab_schema: owner.name
        for gitlab_schema, owner in owners(connection).items()
        if owner.name != name and gitlab_schema not in PER_DATABASE
    }
    if not away:
        return
    tables = write_guard.tables_in(connection, settings, name, away)
    counted = {table: count for table, count in source.strays.items() if count.gitlab_schema in away}
    tables |= {table: count.gitlab_schema for table, count in counted.items()}
    guarded = write_guard.installed(connection)
    slot = source.stream.slot if source.stream is not None else None
    read = connection.execute(_READ, (slot,)).fetchone() == (True,)
    for gitlab_schema, owner in sorted(away.items()):
        described = tuple(
            _table(table, guarded.get(table) == gitlab_schema, counted.get(table), read=read)
            for table, label in sorted(tables.items())
            if label == gitlab_schema
        )
        if described:
            yield GivenAway(name, gitlab_schema, owner, described)


def _table(name: str, guarded: bool, count: StrayState | None, *, read: bool) -> GivenTable:
    if count is None:
        return GivenTable(name, guarded, watched=False)
    return GivenTable(
        name,
        guarded,
        watched=read,
        writes=count.writes if read or count.writes else None,
        inserts=count.inserts,
        updates=count.updates,
        deletes=count.deletes,
        truncates=count.truncates,
        since=_time(count.since_ms),
        last=None if count.last_ms is None else _time(count.last_ms),
    )


def _problems(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each problem with its remedy."""
    gitlab_schema, owner, database = given["gitlab_schema"], given["owner"], given["database"]
    install = _install(gitlab_schema, database)
    for table in given["tables"]:
        if table["writes"]:
            kinds = ", ".join(f"{kind} {table[kind]:,}" for kind in ("inserts", "updates", "deletes", "truncates"))
            yield (
                f"table {table['table']}, owned by {owner}, was written here {table['writes']:,} times since"
                f" {table['since']} ({kinds}), last at {table['last']}",
                f"see docs/how-to/guarding-a-switchover.md, `When there were writes`; prevent more with {install}",
            )
    unknown = [table["table"] for table in given["tables"] if not (table["guarded"] or table["watched"])]
    if unknown:
        yield (
            f"writes here to {_some(unknown)}, owned by {owner}, go unnoticed:"
            " no guard refuses them and no producer counts them",
            f"install the guard with {install}",
        )


def _install(gitlab_schema: str, database: str) -> str:
    return f"`headrace guard {gitlab_schema} --database {database}`"


def _some(tables: Sequence[str]) -> str:
    more = f" and {len(tables) - _NAMED} more" if len(tables) > _NAMED else ""
    return ", ".join(tables[:_NAMED]) + more


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

"""What databases still have of gitlab schemas that others own: which tables refuse writes, and how many there were.

A write there is in no topic, and after the promotion in no other database. A table with the guard refuses it
(`infra.guard.write_guard`); a producer that reads the table's changes counts it. Of a table with neither nothing is
known.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
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
from schemas.gitlab_schemas import GITLAB_SHARED

T = TypeVar("T")

_NAMED: Final = 3
"""How many tables a line names."""
_READ: Final = "SELECT active FROM pg_catalog.pg_replication_slots WHERE slot_name = %s"


@dataclass(frozen=True, slots=True)
class GivenTable:
    """A table of a gitlab schema that another database owns.

    `guarded`: it refuses writes. `watched`: a producer reads its changes now. `writes` is None where it is not known
    whether there were any; where the table is not watched any more, it is what there was until then. The times are
    ISO 8601, in UTC.
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


@dataclass(frozen=True, slots=True)
class GivenAway:
    """A gitlab schema of which `database` has tables, and `owner` owns them."""

    database: str
    gitlab_schema: str
    owner: str
    tables: tuple[GivenTable, ...]

    def document(self) -> dict[str, Any]:
        """Return it as `status --json` has it."""
        return {
            "database": self.database,
            "gitlab_schema": self.gitlab_schema,
            "owner": self.owner,
            "tables": [asdict(table) for table in self.tables],
        }


def survey(settings: Settings, sources: Mapping[str, SourceState]) -> list[GivenAway]:
    """Return what each database of the settings has and does not own; `sources` is what is recorded of the producers.

    A database that does not answer is left out, and so are a standby, and one that is on record under another name: a
    promoted copy that is not open yet.
    """

    def look(connection: psycopg.Connection[Any], name: str) -> Iterator[GivenAway]:
        return _in_database(connection, settings, name, sources.get(name, SourceState()))

    return _asked(settings, look)


def lines(given: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a person has to know of a `GivenAway.document`: writes that there were, and what is not known."""
    for problem, _ in _problems(given):
        yield f"{given['database']}: {problem}; see `headrace check`"


def advise(settings: Settings, sources: Mapping[str, SourceState]) -> Iterator[Advice]:
    """Yield the same for `headrace check`, each with what to do, and the tables that a guard was not installed on.

    Those are said wherever others of their gitlab schema have it: they were made since, perhaps before a move.
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
            f"{_some(tables)} {'lacks' if len(tables) == 1 else 'lack'} a guard that works, and tables of"
            f" {gitlab_schema} have been given one"
        )
        yield Advice(f"databases.{database}", problem, (), f"install it with {_install(gitlab_schema, database)}")


def _asked(settings: Settings, look: Callable[[psycopg.Connection[Any], str], Iterator[T]]) -> list[T]:
    """Return what `look` finds in each database that answers, takes writes and is on record under its own name."""
    found: list[T] = []
    for name, database in settings.databases.items():
        dsn = database.dsn.get_secret_value()
        with contextlib.suppress(HeadraceError):
            with connect.translated(dsn), connect.connect(dsn, name="given away") as connection:
                standby = connection.execute("SELECT pg_catalog.pg_is_in_recovery()").fetchone() == (True,)
                if not standby and database_name(connection) == name:
                    found += list(look(connection, name))
    return found


def _in_database(
    connection: psycopg.Connection[Any], settings: Settings, name: str, source: SourceState
) -> Iterator[GivenAway]:
    away = {
        gitlab_schema: owner.name
        for gitlab_schema, owner in owners(connection).items()
        if owner.name != name and gitlab_schema != GITLAB_SHARED
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
                f"table {table['table']}, which {owner} owns, was written here {table['writes']:,} times since"
                f" {table['since']} ({kinds}), at last {table['last']}",
                f"see docs/how-to/guarding-a-switchover.md, `When there were writes`; keep more off with {install}",
            )
    unknown = [table["table"] for table in given["tables"] if not (table["guarded"] or table["watched"])]
    if unknown:
        yield (
            f"whether {_some(unknown)}, which {owner} owns, {'is' if len(unknown) == 1 else 'are'} written here is not"
            " known: no guard refuses it and no producer reads it",
            f"install the guard with {install}",
        )


def _install(gitlab_schema: str, database: str) -> str:
    return f"`headrace guard {gitlab_schema} --database {database}`"


def _some(tables: Sequence[str]) -> str:
    more = f" and {len(tables) - _NAMED} more" if len(tables) > _NAMED else ""
    return ", ".join(tables[:_NAMED]) + more


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

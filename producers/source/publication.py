"""Creates a source's publication, and detects edits of it.

PostgreSQL decodes each change with the publication as of that change. If a table is removed and added back, changes in
between are lost; so are all tables' changes of a kind while the publication omits that kind. Each such edit replaces
catalog rows, so the oid and xmin of these rows are recorded and compared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import psycopg
from psycopg import errors, sql
from psycopg.rows import dict_row

from infra.postgres.control import HEARTBEAT, OWNERSHIP, PUBLISHED, REQUESTS
from producers.source.tables import CapturedTable
from schemas.errors import Refused
from schemas.lazy_dataclass import dataclass

_PUBLICATION: Final = """
SELECT p.oid::text || '.' || p.xmin::text || coalesce(
           (SELECT '+' || o.oid::text || '.' || o.xmin::text
            FROM pg_catalog.pg_publication_rel o JOIN pg_catalog.pg_class c ON c.oid = o.prrelid
            JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
            WHERE o.prpubid = p.oid AND n.nspname = %(schema)s AND c.relname = %(ownership)s), '') AS version,
       p.puballtables AS all_tables,
       p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate AS whole,
       coalesce(to_jsonb(p) ->> 'pubgencols', 's') = 's' AS generated,
       NOT p.pubviaroot AS by_partition,
       pg_catalog.pg_has_role(p.pubowner, 'USAGE') AS owned,
       (SELECT pg_catalog.json_object_agg(n.nspname || '.' || c.relname, r.oid::text || '.' || r.xmin::text)
        FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_class c ON c.oid = r.prrelid
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE r.prpubid = p.oid AND coalesce(to_jsonb(r) ->> 'prattrs', to_jsonb(r) ->> 'prqual') IS NULL
          AND NOT (p.pubviaroot AND c.relkind = 'p') {of_tables}) AS tables
FROM pg_catalog.pg_publication p WHERE p.pubname = %(name)s
"""
"""Reads the catalog, since the view pg_publication_tables opens the tables and waits for locked ones.

Column lists and row filters exist from 15 on, pubgencols from 18 on: these columns are looked up by name. A partitioned
table published via its root does not count.
"""
_ALL: Final = _PUBLICATION.format(of_tables="")
_SOME: Final = _PUBLICATION.format(of_tables="AND r.prrelid = ANY(%(oids)s::oid[])")
"""A statement of its own: with a condition on the parameter PostgreSQL would read all tables for each single one."""

_IS_THERE: Final = """
SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s
"""

_IN_PUBLICATION: Final = """
SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
JOIN pg_catalog.pg_class c ON c.oid = r.prrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE p.pubname = %s AND n.nspname = %s AND c.relname = %s
"""

GONE: Final = "no longer exists"

_WHOLE: Final = "publish = 'insert, update, delete, truncate', publish_via_partition_root = false"
"""Each partition by itself: via the root, the stream lacks its replica identity and its truncates."""
_GENERATED: Final = ", publish_generated_columns = stored"
_GENERATED_SINCE: Final = 180_000
"""From 18 on PostgreSQL refuses to update a table whose identity has a generated column that is not published."""


class PublishesAllTables(Refused):
    """Choose another name in databases.<name>.publication; headrace creates it."""


class PublicationOfAnotherRole(Refused):
    """Have its owner, or an administrator, run what `headrace init --sql` prints."""


@dataclass(frozen=True)
class Publication:
    """The current state of a publication.

    `whole`: it publishes every kind of change; `generated`: it publishes stored generated columns; `by_partition`: it
    publishes each partition by itself; `owned`: this role may alter it. `tables` are those published without a filter:
    name → version of the publication, a slash, version of the table's row in it. A reverted edit has other versions.
    The publication's version includes that of headrace.schema_ownership, whose rows announce changes of owner.
    """

    version: str
    whole: bool
    all_tables: bool
    generated: bool
    by_partition: bool
    owned: bool
    tables: Mapping[str, str]


def read_publication(
    connection: psycopg.Connection[Any], name: str, oids: Collection[int] | None = None
) -> Publication | None:
    """Return the publication of that name, None if it does not exist; with `oids`, only these tables."""
    return ask_publication(connection, name, oids)()


def ask_publication(
    connection: psycopg.Connection[Any], name: str, oids: Collection[int] | None = None
) -> Callable[[], Publication | None]:
    """Ask what `read_publication` returns; call the result once the connection's pipeline has ended."""
    schema, ownership = OWNERSHIP
    asked = {"name": name, "oids": list(oids or ()), "schema": schema, "ownership": ownership}
    cursor = connection.cursor(row_factory=dict_row)
    cursor.execute(_ALL if oids is None else _SOME, asked)

    def answer() -> Publication | None:
        row = cursor.fetchone()
        if row is None:
            return None
        # If kinds of changes are omitted, no table is published completely.
        found = (row.pop("tables") or {}) if row["whole"] else {}
        tables = {table: f"{row['version']}/{version}" for table, version in found.items()}
        return Publication(**{**row, "tables": tables})

    return answer


def published_tables(connection: psycopg.Connection[Any], name: str) -> frozenset[str] | None:
    """Return the tables (`schema.table`) that publication `name` publishes completely; None if it does not exist.

    Tables published with a filter or column list do not count, nor does any if kinds of changes are omitted.
    """
    publication = read_publication(connection, name)
    return None if publication is None else frozenset(publication.tables)


def replaced(recorded: str | None, publication: Publication | None) -> str | None:
    """Return what happened to the publication since a table was `recorded`; None if it is unchanged."""
    if recorded is None:
        return None
    if publication is None:
        return GONE
    was, now = recorded.partition("/")[0], publication.version
    if was == now:
        return None
    return "was altered" if was.partition(".")[0] == now.partition(".")[0] else "was dropped and recreated"


def edited(recorded: str | None, table: str, publication: Publication | None) -> str | None:
    """Return why changes of a table may be missing since it was `recorded`; None if all are published."""
    now = None if publication is None else publication.tables.get(table)
    if now is None:
        return "it was removed from the publication"
    if recorded is not None and recorded != now:
        return "the publication was altered for it, perhaps temporarily: changes made meanwhile may be missing"
    return None


def wanted_tables(connection: psycopg.Connection[Any], tables: Sequence[CapturedTable]) -> frozenset[str]:
    """Return the tables that a publication must have: the captured ones, and headrace's own once they exist."""
    own = [table for table in PUBLISHED if connection.execute(_IS_THERE, table).fetchone() is not None]
    return frozenset(table.name for table in tables) | {".".join(table) for table in own}


def refuse_foreign(name: str, publication: Publication | None, wanted: frozenset[str]) -> None:
    """Raise PublishesAllTables or PublicationOfAnotherRole for a publication that is wrong and cannot be altered."""
    if publication is None:
        return
    if publication.all_tables:
        raise PublishesAllTables(f"publication {name} is FOR ALL TABLES")
    if publication.owned:
        return
    if missing := sorted(wanted - publication.tables.keys()):
        raise PublicationOfAnotherRole(
            f"publication {name} belongs to another role and does not publish every change of {', '.join(missing)}"
        )


def ensure_publication(connection: psycopg.Connection[Any], name: str, tables: Sequence[CapturedTable]) -> bool:
    """Make publication `name` publish every change of exactly `tables`; return whether it had to be changed.

    It also gets headrace's own tables once they exist. What is already up to date keeps its version. A publication of
    another role, which cannot be altered, may have more tables. Each partition of a partitioned table is published
    under its own name. Raises PublishesAllTables and PublicationOfAnotherRole.
    """
    with connection.transaction(), connection.cursor() as cursor:
        publication = read_publication(connection, name)
        wanted = wanted_tables(connection, tables)
        refuse_foreign(name, publication, wanted)
        identifier = sql.Identifier(name)
        options = sql.SQL(_WHOLE + (_GENERATED if connection.info.server_version >= _GENERATED_SINCE else ""))
        if publication is None:
            cursor.execute(
                sql.SQL("CREATE PUBLICATION {} FOR TABLE {} WITH ({})").format(
                    identifier, _listed(tables, wanted), options
                )
            )
            return True
        if not publication.owned:
            return False
        right = publication.whole and publication.generated and publication.by_partition
        if not right:
            cursor.execute(sql.SQL("ALTER PUBLICATION {} SET ({})").format(identifier, options))
        if publication.tables.keys() == wanted:
            return not right
        try:
            with connection.transaction():
                cursor.execute(sql.SQL("ALTER PUBLICATION {} SET TABLE {}").format(identifier, _listed(tables, wanted)))
        except errors.InsufficientPrivilege:
            # The role may not use some schema; tables that are already published need not be named.
            if not _alter_in_part(connection, name, publication, tables, wanted):
                raise
    return True


def _alter_in_part(
    connection: psycopg.Connection[Any],
    name: str,
    publication: Publication,
    tables: Sequence[CapturedTable],
    wanted: frozenset[str],
) -> bool:
    """Add missing tables and drop unwanted ones, as far as the role may name them.

    Unwanted tables that it may not name stay published; their changes are ignored. Returns whether nothing is missing.
    """
    command = sql.SQL("ALTER PUBLICATION {} {} TABLE {}")
    missing = wanted - publication.tables.keys()
    for each in tables:
        if each.name in missing:
            # It may be published with a filter or column list.
            if not withdraw(connection, name, each):
                return False
            connection.execute(command.format(sql.Identifier(name), sql.SQL("ADD"), _table(each)))
    for extra in publication.tables.keys() - wanted:
        table = sql.Identifier(*extra.split(".", 1))
        with contextlib.suppress(errors.InsufficientPrivilege, errors.UndefinedTable), connection.transaction():
            connection.execute(command.format(sql.Identifier(name), sql.SQL("DROP"), table))
    return put_back(connection, name, [own for own in PUBLISHED if ".".join(own) in missing])


def lacking_own(publication: Publication) -> list[tuple[str, str]]:
    """Return headrace's own tables, (schema, name), that a publication lacks; see Publication.version."""
    return [table for table in (REQUESTS, HEARTBEAT) if ".".join(table) not in publication.tables]


def put_back(connection: psycopg.Connection[Any], name: str, own: Sequence[tuple[str, str]]) -> bool:
    """Add headrace's `own` tables back to publication `name`, without filters; return whether that succeeded.

    False if another role owns the publication, or another session is altering it or one of the tables.
    """
    try:
        with connection.transaction():
            for table in own:
                filtered = connection.execute(_IN_PUBLICATION, (name, *table)).fetchone() is not None
                for verb in ("DROP", "ADD") if filtered else ("ADD",):
                    command = sql.SQL("ALTER PUBLICATION {} {} TABLE ONLY {}")
                    connection.execute(command.format(sql.Identifier(name), sql.SQL(verb), sql.Identifier(*table)))
    except (errors.InsufficientPrivilege, errors.LockNotAvailable, errors.UndefinedTable):
        return False
    return True


def withdraw(connection: psycopg.Connection[Any], name: str, table: CapturedTable) -> bool:
    """Drop a table from publication `name`, so that it can be updated; return whether that succeeded.

    False if another role owns the publication, or another session is altering the table.
    """
    command = sql.SQL("ALTER PUBLICATION {} DROP TABLE {}").format(sql.Identifier(name), _table(table))
    try:
        with connection.transaction():
            connection.execute(command)
    except (errors.UndefinedObject, errors.UndefinedTable):
        return True
    except (errors.InsufficientPrivilege, errors.LockNotAvailable):
        return False
    return True


def _listed(tables: Sequence[CapturedTable], wanted: frozenset[str]) -> sql.Composable:
    listed = [_table(table) for table in tables]
    own = [table for table in PUBLISHED if ".".join(table) in wanted]
    listed += [sql.SQL("ONLY {}").format(sql.Identifier(*table)) for table in own]
    return sql.SQL(", ").join(listed)


def _table(table: CapturedTable) -> sql.Composable:
    # Tables that inherit from one are separate; a partitioned table has its rows in its partitions.
    return sql.SQL("{} {}").format(
        sql.SQL("" if table.partitioned else "ONLY"),
        sql.Identifier(table.relation.schema, table.relation.table),
    )

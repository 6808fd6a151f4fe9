"""The publication of a source: which tables' changes its slot decodes, and whether it is still as a producer left it.

PostgreSQL decodes each change by the publication as it was at that moment. A table that was taken out and put back lost
what was written in between, and so did every table while the publication lacked a kind of change. Each such edit
replaces rows of the catalog, so the oid and xmin of these rows are recorded and compared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import errors, sql
from psycopg.rows import dict_row

from infra.postgres.control import HEARTBEAT, OWNERSHIP, PUBLISHED, REQUESTS
from producers.source.tables import CapturedTable
from schemas.errors import Refused

_PUBLICATION: Final = """
SELECT p.oid::text || '.' || p.xmin::text || coalesce(
           (SELECT '+' || o.oid::text || '.' || o.xmin::text
            FROM pg_catalog.pg_publication_rel o JOIN pg_catalog.pg_class c ON c.oid = o.prrelid
            JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
            WHERE o.prpubid = p.oid AND n.nspname || '.' || c.relname = %(ownership)s), '') AS version,
       p.puballtables AS all_tables,
       p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate AS whole,
       coalesce(to_jsonb(p) ->> 'pubgencols', 's') = 's' AS generated,
       NOT p.pubviaroot AS by_partition,
       pg_catalog.pg_has_role(p.pubowner, 'USAGE') AS owned,
       (SELECT pg_catalog.json_object_agg(n.nspname || '.' || c.relname, r.oid::text || '.' || r.xmin::text)
        FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_class c ON c.oid = r.prrelid
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE r.prpubid = p.oid AND coalesce(to_jsonb(r) ->> 'prattrs', to_jsonb(r) ->> 'prqual') IS NULL
          AND NOT (p.pubviaroot AND c.relkind = 'p')
          AND (%(oids)s::oid[] IS NULL OR r.prrelid = ANY(%(oids)s::oid[]))) AS tables
FROM pg_catalog.pg_publication p WHERE p.pubname = %(name)s
"""
"""From the catalog itself: the view pg_publication_tables opens the tables, and waits for one that is locked.

Before 15 there is neither a list of columns nor a filter of rows, and before 18 nothing is said of generated columns:
those are looked for by name. A partitioned table published as one, via its root, is none.
"""

_IS_THERE: Final = """
SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s
"""

_IN_PUBLICATION: Final = """
SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
JOIN pg_catalog.pg_class c ON c.oid = r.prrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE p.pubname = %s AND n.nspname = %s AND c.relname = %s
"""

GONE: Final = "does not exist any more"

_WHOLE: Final = "publish = 'insert, update, delete, truncate', publish_via_partition_root = false"
"""Each partition by itself: published as its table, it would tell neither its replica identity nor its truncates."""
_GENERATED: Final = ", publish_generated_columns = stored"
_GENERATED_SINCE: Final = 180_000
"""From 18 on PostgreSQL refuses to update a table whose identity has a generated column that is not published."""


class PublishesAllTables(Refused):
    """Choose another with databases.<name>.publication; headrace makes it."""


class PublicationOfAnotherRole(Refused):
    """Have its owner, or an administrator, run what `headrace init --sql` prints."""


@dataclass(frozen=True, slots=True)
class Publication:
    """A publication as the catalog has it now.

    `whole` says that it leaves out no kind of change, `generated` that stored generated columns are published,
    `by_partition` that each partition is published by itself, `owned` that this role may alter it. `tables` are those
    that it publishes without a filter: name → version of the publication, a slash, version of the table's row in it. An
    edit that is undone has other versions. That of the publication has headrace.schema_ownership's in it, without which
    no change of owner would come.
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
    """Return the publication of that name, None when there is none; with `oids`, only these of its tables."""
    asked = {"name": name, "oids": None if oids is None else list(oids), "ownership": ".".join(OWNERSHIP)}
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(_PUBLICATION, asked).fetchone()
    if row is None:
        return None
    # Where kinds of changes are left out, no table is published whole.
    found = (row.pop("tables") or {}) if row["whole"] else {}
    tables = {table: f"{row['version']}/{version}" for table, version in found.items()}
    return Publication(**{**row, "tables": tables})


def published_tables(connection: psycopg.Connection[Any], name: str) -> frozenset[str] | None:
    """Return the tables (`schema.table`) whose changes publication `name` publishes whole; None: it does not exist.

    A table of which it leaves out rows or columns is none, and if it leaves out kinds of changes, there is none.
    """
    publication = read_publication(connection, name)
    return None if publication is None else frozenset(publication.tables)


def replaced(recorded: str | None, publication: Publication | None) -> str | None:
    """Return what became of the publication under which a table was `recorded`; None: it is as it was."""
    if recorded is None:
        return None
    if publication is None:
        return GONE
    was, now = recorded.partition("/")[0], publication.version
    if was == now:
        return None
    return "was altered" if was.partition(".")[0] == now.partition(".")[0] else "was dropped and made again"


def edited(recorded: str | None, table: str, publication: Publication | None) -> str | None:
    """Return why changes of a table may be missing since it was `recorded`; None: all are published."""
    now = None if publication is None else publication.tables.get(table)
    if now is None:
        return "it was taken out of the publication"
    if recorded is not None and recorded != now:
        return "the publication was altered for it, and perhaps altered back: what was written meanwhile may be missing"
    return None


def wanted_tables(connection: psycopg.Connection[Any], tables: Sequence[CapturedTable]) -> frozenset[str]:
    """Return what a publication must have: the tables, and headrace's own that a stream follows, once they exist."""
    own = [table for table in PUBLISHED if connection.execute(_IS_THERE, table).fetchone() is not None]
    return frozenset(table.name for table in tables) | {".".join(table) for table in own}


def refuse_foreign(name: str, publication: Publication | None, wanted: frozenset[str]) -> None:
    """Raise PublishesAllTables, or PublicationOfAnotherRole, for one that is not right and cannot be put right."""
    if publication is None:
        return
    if publication.all_tables:
        raise PublishesAllTables(f"publication {name} is one FOR ALL TABLES")
    if publication.owned:
        return
    if missing := sorted(wanted - publication.tables.keys()):
        raise PublicationOfAnotherRole(
            f"publication {name} is another role's, and does not publish every change of {', '.join(missing)}"
        )


def ensure_publication(connection: psycopg.Connection[Any], name: str, tables: Sequence[CapturedTable]) -> bool:
    """Make publication `name` publish exactly `tables`, every change of them; returns whether it had to be changed.

    With them headrace's own tables that it has to follow, once they are there. What is right already keeps its version.
    More than these may be in one of another role's, which cannot be changed.

    Of a partitioned table each partition is published, under its own name. Raises PublishesAllTables and
    PublicationOfAnotherRole.
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
            # Of some schema the role may not use: one of tables that are published already need not be named.
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
    """Publish what is missing, and take out what is not wanted, as far as the role may name it.

    What it may not stays published: its changes are read, and none of them is one of a captured table. Returns whether
    nothing is missing then.
    """
    command = sql.SQL("ALTER PUBLICATION {} {} TABLE {}")
    missing = wanted - publication.tables.keys()
    for each in tables:
        if each.name in missing:
            # It may be published in part.
            if not withdraw(connection, name, each):
                return False
            connection.execute(command.format(sql.Identifier(name), sql.SQL("ADD"), _table(each)))
    for extra in publication.tables.keys() - wanted:
        table = sql.Identifier(*extra.split(".", 1))
        with contextlib.suppress(errors.InsufficientPrivilege, errors.UndefinedTable), connection.transaction():
            connection.execute(command.format(sql.Identifier(name), sql.SQL("DROP"), table))
    return put_back(connection, name, [own for own in PUBLISHED if ".".join(own) in missing])


def lacking_own(publication: Publication) -> list[tuple[str, str]]:
    """Return headrace's own tables, (schema, name), that were taken out of a publication; see Publication.version."""
    return [table for table in (REQUESTS, HEARTBEAT) if ".".join(table) not in publication.tables]


def put_back(connection: psycopg.Connection[Any], name: str, own: Sequence[tuple[str, str]]) -> bool:
    """Publish headrace's `own` tables whole that publication `name` has lost; returns whether that is done.

    False where another role owns the publication, or another session alters it or one of the tables.
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
    """Take a table out of publication `name`, so that PostgreSQL lets it be written; returns whether that is done.

    False where another role owns the publication, or another session alters the table.
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
    # What inherits from a table is another table; a partitioned one has its rows in its partitions.
    return sql.SQL("{} {}").format(
        sql.SQL("" if table.partitioned else "ONLY"),
        sql.Identifier(table.relation.schema, table.relation.table),
    )

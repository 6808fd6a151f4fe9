"""Reads and writes Praefect's own tables: missing repositories, new records, and imported virtual storages.

Supports the schema that the database has: before 15 a record had no `repository_id` and no `replica_path`. A statement
that writes `storage_repositories` notifies Praefect's nodes of all its paths in one payload, and fails if that exceeds
the limit of NOTIFY: `statements` splits the repositories so that each payload stays below it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import psycopg

Cursor = psycopg.Cursor[Any]

PAYLOAD_BYTES: Final = 7_999
"""The limit of a NOTIFY payload."""

_ROW_BYTES: Final = len(
    '{"virtual_storage":,"relative_path":,"storage":,"generation":0,"repository_id":9223372036854775807,"assigned":true'
    ',"verified_at":null,"verification_leased_until":null}, \n '
)
"""A row's bytes in addition to its three names, for triggers that send whole rows, as in the first versions."""
_AROUND_BYTES: Final = len('{"old" : null, "new" : []}')
_ALONE_BYTES: Final = len('[{"relative_paths": [], "virtual_storage": }]')
"""A path's additional bytes, for triggers that send the paths of a virtual storage, as in later versions."""

_REPLICA_PATHS: Final = "@cluster/"
"""The directory in which Praefect creates repositories itself; it records such a path with the name that users see."""


class Found(NamedTuple):
    """A repository on a storage's disk."""

    virtual_storage: str
    relative_path: str
    storage: str


class Schema(NamedTuple):
    """The columns that a version of Praefect's schema has; they were added one after the other."""

    replica_path: bool
    repository_id: bool
    """Of `storage_repositories`; that of `repositories` has a default."""


def schema_of(cursor: Cursor) -> Schema:
    """Return the columns that the database's schema has."""
    cursor.execute(
        "SELECT bool_or(attname = 'replica_path' AND attrelid = to_regclass('public.repositories')),"
        " bool_or(attname = 'repository_id' AND attrelid = to_regclass('public.storage_repositories'))"
        " FROM pg_attribute WHERE NOT attisdropped"
        " AND attrelid IN (to_regclass('public.repositories'), to_regclass('public.storage_repositories'))"
    )
    row = cursor.fetchone()
    assert row is not None
    return Schema(*map(bool, row))


def recordable(virtual_storage: str, relative_path: str) -> bool:
    """Whether a repository's path, alone, fits into the notification of any version's trigger."""
    return _json_bytes(relative_path) + _json_bytes(virtual_storage) + _ALONE_BYTES <= PAYLOAD_BYTES


def missing(cursor: Cursor, schema: Schema, found: Iterable[Found]) -> list[Found]:
    """Return the repositories without a record, in the order in which they are to be written.

    All consumers write in this order, so that they cannot deadlock. A path that is the replica path of a record already
    has a record, by another name; for one below `@cluster` Praefect creates the record with the repository.
    """
    rows = sorted(each for each in set(found) if not each.relative_path.startswith(_REPLICA_PATHS))
    if not rows:
        return []
    names = ["relative_path", *(["replica_path"] if schema.replica_path else [])]
    unknown = " AND ".join(
        "NOT EXISTS (SELECT FROM public.repositories r"
        f" WHERE r.virtual_storage = f.virtual_storage AND r.{name} = f.relative_path)"
        for name in names
    )
    cursor.execute(
        "SELECT f.virtual_storage, f.relative_path, f.storage"  # noqa: S608 - constants of this file
        " FROM unnest(%s::text[], %s::text[], %s::text[]) WITH ORDINALITY"
        f" AS f(virtual_storage, relative_path, storage, place) WHERE {unknown} ORDER BY f.place",
        _columns(rows),
    )
    return [Found(*row) for row in cursor]


def record(cursor: Cursor, schema: Schema, found: Sequence[Found]) -> int:
    """Record repositories that are all `recordable`; return how many got a record.

    Existing records stay unchanged, even if another session wrote them since they were missing. The storage gets a row
    only for a repository that this statement inserts. `found` is one of `statements`.
    """
    columns = ["virtual_storage", "relative_path", "generation"]
    values = ["virtual_storage", "relative_path", "0"]
    if schema.replica_path:
        columns.append("replica_path")
        values.append("relative_path")
    repository_id = ", repository_id" if schema.repository_id else ""
    cursor.execute(
        "WITH found AS ("  # noqa: S608 - constants of this file
        " SELECT * FROM unnest(%s::text[], %s::text[], %s::text[]) AS f(virtual_storage, relative_path, storage)"
        "), made AS ("
        f" INSERT INTO public.repositories ({', '.join(columns)})"
        f" SELECT {', '.join(values)} FROM found ORDER BY virtual_storage, relative_path"
        f" ON CONFLICT DO NOTHING RETURNING virtual_storage, relative_path{repository_id}"
        "), hosted AS ("
        f" INSERT INTO public.storage_repositories (virtual_storage, relative_path, storage, generation{repository_id})"
        f" SELECT virtual_storage, relative_path, storage, 0{repository_id}"
        " FROM made JOIN found USING (virtual_storage, relative_path)"
        " ON CONFLICT DO NOTHING"
        ") SELECT count(*) FROM made",
        _columns(found),
    )
    return int(_one(cursor))


def statements(found: Iterable[Found]) -> Iterator[list[Found]]:
    """Split repositories into statements, by the longest payload that any version would send.

    A repository that alone could be too long for versions that send whole rows gets its own statement, which the
    database then accepts or refuses.
    """
    batch: list[Found] = []
    size = _AROUND_BYTES
    for each in found:
        more = sum(map(_json_bytes, each)) + _ROW_BYTES
        if batch and size + more > PAYLOAD_BYTES:
            yield batch
            batch, size = [], _AROUND_BYTES
        batch.append(each)
        size += more
    if batch:
        yield batch


def imported(cursor: Cursor) -> set[str]:
    """Return the virtual storages that are marked as imported."""
    cursor.execute("SELECT virtual_storage FROM public.virtual_storages WHERE repositories_imported")
    return {name for (name,) in cursor}


def mark_imported(cursor: Cursor, virtual_storage: str) -> int:
    """Set the flag of a virtual storage; return 1, or 0 if it was already set."""
    cursor.execute(
        "INSERT INTO public.virtual_storages AS v (virtual_storage, repositories_imported) VALUES (%s, true)"
        " ON CONFLICT (virtual_storage) DO UPDATE SET repositories_imported = true WHERE NOT v.repositories_imported",
        (virtual_storage,),
    )
    return cursor.rowcount


def hosts_something(cursor: Cursor, virtual_storage: str, storage: str) -> bool:
    """Whether the records have any repository on a storage."""
    cursor.execute(
        "SELECT EXISTS (SELECT FROM public.storage_repositories WHERE virtual_storage = %s AND storage = %s)",
        (virtual_storage, storage),
    )
    return bool(_one(cursor))


def virtual_storages(cursor: Cursor) -> set[str]:
    """Return the virtual storages in the database: those with a flag or a repository.

    Finds each name through the index, since DISTINCT over all repositories would read the whole table.
    """
    cursor.execute(
        "WITH RECURSIVE names(name) AS ("
        " (SELECT virtual_storage FROM public.repositories ORDER BY virtual_storage LIMIT 1)"
        " UNION ALL"
        " SELECT (SELECT r.virtual_storage FROM public.repositories r WHERE r.virtual_storage > names.name"
        " ORDER BY r.virtual_storage LIMIT 1) FROM names WHERE names.name IS NOT NULL)"
        " SELECT name FROM names WHERE name IS NOT NULL UNION SELECT virtual_storage FROM public.virtual_storages"
    )
    return {name for (name,) in cursor}


def _columns(found: Iterable[Found]) -> tuple[list[str], list[str], list[str]]:
    rows = list(found)
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


def _json_bytes(text: str) -> int:
    """Return the length of a text as PostgreSQL writes it in JSON, with the same escapes as Python."""
    return len(json.dumps(text, ensure_ascii=False).encode())


def _one(cursor: Cursor) -> Any:
    row = cursor.fetchone()
    assert row is not None
    return row[0]

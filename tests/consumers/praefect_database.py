"""Praefect's database for the tests: its schemas before and since version 15, with triggers, and a log of writes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import psycopg
from psycopg import sql

Connection = psycopg.Connection[Any]

_OLD = """
    CREATE TABLE public.repositories (
        virtual_storage text, relative_path text, generation bigint, "primary" text,
        PRIMARY KEY (virtual_storage, relative_path)
    );
    CREATE TABLE public.storage_repositories (
        virtual_storage text, relative_path text, storage text, generation bigint NOT NULL,
        PRIMARY KEY (virtual_storage, relative_path, storage)
    );
    -- The first form of the notification: whole rows.
    CREATE FUNCTION public.notify_on_change() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
            before json;
            after json;
        BEGIN
            IF TG_OP <> 'INSERT' THEN
                SELECT json_agg(row_to_json(o.*)) INTO before FROM old AS o;
            END IF;
            IF TG_OP <> 'DELETE' THEN
                SELECT json_agg(row_to_json(n.*)) INTO after FROM new AS n;
            END IF;
            PERFORM pg_notify(TG_ARGV[0], json_build_object('old', before, 'new', after)::text);
            RETURN NULL;
        END $$;
"""

_LOG = """
    -- The tests' own: every write, with who did it.
    CREATE TABLE public.writes (
        sequence bigint GENERATED ALWAYS AS IDENTITY, operation text, "table" text, row_was jsonb, application text
    );
    CREATE FUNCTION public.log_write() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
        BEGIN
            INSERT INTO public.writes (operation, "table", row_was, application) VALUES
                (TG_OP, TG_TABLE_NAME, to_jsonb(coalesce(NEW, OLD)), current_setting('application_name'));
            RETURN NULL;
        END $$;
    CREATE TRIGGER log_write AFTER INSERT OR UPDATE OR DELETE ON public.repositories
        FOR EACH ROW EXECUTE FUNCTION public.log_write();
    CREATE TRIGGER log_write AFTER INSERT OR UPDATE OR DELETE ON public.virtual_storages
        FOR EACH ROW EXECUTE FUNCTION public.log_write();
"""

_NEW = files("infra.demo").joinpath("praefect.sql").read_text(encoding="utf-8")
_BOTH = _NEW[_NEW.index("CREATE TABLE public.virtual_storages") :]

SCHEMAS = {"old": _OLD + _BOTH + _LOG, "new": _NEW + _LOG}
"""Praefect's schema as it was when the importer was written, and as it is since 15."""

CHANNEL = "storage_repositories_updates"


def has_ids(connection: Connection) -> bool:
    """Whether the database has the new schema."""
    row = connection.execute(
        "SELECT count(*) FROM pg_attribute WHERE attrelid = 'public.repositories'::regclass"
        " AND attname = 'repository_id'"
    ).fetchone()
    return row == (1,)


def track(
    connection: Connection,
    paths: Iterable[str],
    *,
    virtual_storage: str = "default",
    storages: Iterable[str] = ("gitaly-0", "gitaly-1"),
    generation: int = 7,
) -> None:
    """Record repositories as Praefect does after some writes."""
    new = has_ids(connection)
    for path in paths:
        names = [virtual_storage, path]
        if new:
            replica = f"@cluster/repositories/aa/bb/{path}"
            made = connection.execute(
                'INSERT INTO public.repositories (virtual_storage, relative_path, generation, "primary", replica_path)'
                " VALUES (%s, %s, %s, 'gitaly-1', %s) RETURNING repository_id",
                (*names, generation, replica),
            ).fetchone()
            columns = ", repository_id"
        else:
            connection.execute("INSERT INTO public.repositories VALUES (%s, %s, %s, 'gitaly-1')", (*names, generation))
            made, columns = (), ""
        assert made is not None
        for storage in storages:
            connection.execute(
                sql.SQL(
                    "INSERT INTO public.storage_repositories"
                    " (virtual_storage, relative_path, storage, generation{}) VALUES ({})"
                ).format(sql.SQL(columns), sql.SQL(", ").join([sql.Placeholder()] * (4 + len(made)))),
                (*names, storage, generation, *made),
            )


def checksum(connection: Connection, paths: list[str], virtual_storage: str = "default") -> str:
    """Return a checksum of the records of `paths`: their bytes, and by which transactions and where they lie."""
    parts = []
    for table in ("repositories", "storage_repositories"):
        row = connection.execute(
            sql.SQL(
                "SELECT md5(string_agg(concat_ws(' ', t.ctid, t.xmin, t), E'\\n' ORDER BY t.ctid)) FROM {} t"
                " WHERE virtual_storage = %s AND relative_path = ANY(%s)"
            ).format(sql.Identifier("public", table)),
            (virtual_storage, paths),
        ).fetchone()
        assert row is not None
        parts.append(str(row[0]))
    return " ".join(parts)


def records(connection: Connection, virtual_storage: str = "default") -> dict[str, tuple[object, ...]]:
    """Return relative path → generation, primary, and, of a new schema, the replica path."""
    extra = ", replica_path" if has_ids(connection) else ""
    found = connection.execute(
        f'SELECT relative_path, generation, "primary"{extra} FROM public.repositories WHERE virtual_storage = %s',
        (virtual_storage,),
    )
    return {path: tuple(rest) for path, *rest in found}


def hosts(connection: Connection, virtual_storage: str = "default") -> dict[str, dict[str, int]]:
    """Return relative path → storage → generation."""
    found: dict[str, dict[str, int]] = {}
    for path, storage, generation in connection.execute(
        "SELECT relative_path, storage, generation FROM public.storage_repositories WHERE virtual_storage = %s",
        (virtual_storage,),
    ):
        found.setdefault(path, {})[storage] = generation
    return found


def flags(connection: Connection) -> dict[str, bool]:
    """Return virtual storage → whether it is imported."""
    return dict(connection.execute("SELECT virtual_storage, repositories_imported FROM public.virtual_storages"))


def written(connection: Connection, table: str = "repositories") -> list[str]:
    """Return consumers' writes to a table, as `operation name`, in order."""
    name = "relative_path" if table == "repositories" else "virtual_storage"
    found = connection.execute(
        "SELECT operation, row_was ->> %s FROM public.writes"
        " WHERE \"table\" = %s AND application LIKE 'headrace consume%%' ORDER BY sequence",
        (name, table),
    )
    return [f"{operation} {what}" for operation, what in found]


class Listener:
    """A stand-in for Praefect's listener: the notifications it received."""

    def __init__(self) -> None:
        self.payloads: list[str] = []

    @property
    def longest(self) -> int:
        return max((len(payload.encode()) for payload in self.payloads), default=0)

    def paths(self) -> list[str]:
        """Return every path that a notification reported as new, once per notification."""
        return [path for payload in self.payloads for path in _paths(json.loads(payload))]


@contextmanager
def listening(dsn: str) -> Iterator[tuple[Listener, Callable[[], Listener]]]:
    """Listen as Praefect does. The second value waits for all that was committed before, and returns the listener."""
    listener = Listener()
    marks: dict[str, threading.Event] = {}

    def listen(connection: Connection) -> None:
        for notification in connection.notifies():
            if notification.channel == "tests_mark":
                marks[notification.payload].set()
                if notification.payload == "end":
                    return
            else:
                listener.payloads.append(notification.payload)

    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("LISTEN storage_repositories_updates")
        connection.execute("LISTEN tests_mark")
        thread = threading.Thread(target=listen, args=(connection,), daemon=True)
        thread.start()

        def passed(mark: str) -> None:
            marks[mark] = threading.Event()
            with psycopg.connect(dsn, autocommit=True) as other:
                other.execute("SELECT pg_notify('tests_mark', %s)", (mark,))
            assert marks[mark].wait(180), "the listener does not hear anything"

        def told() -> Listener:
            passed(f"mark {len(marks)}")
            return listener

        try:
            yield listener, told
        finally:
            passed("end")
            thread.join(180)


def _paths(payload: Any) -> Iterator[str]:
    if isinstance(payload, dict):
        yield from (row["relative_path"] for row in payload["new"] or ())
    else:
        for group in payload:
            yield from group["relative_paths"]

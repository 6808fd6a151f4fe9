"""Removes the records that a switchover left behind, of migrations whose gitlab schema another database owns now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg import sql

from consumers.ledger.owner_lookup import Answers, ask
from consumers.operations import catalog
from infra.postgres import connect
from infra.postgres.advisory_locks import exclude, ownership_key
from infra.postgres.control import require_name, require_prefix
from infra.settings.model import Settings
from infra.state.history import Actor, OperatorAction, record_action
from schemas.errors import OwnershipMoved
from schemas.lazy_dataclass import dataclass

_STALE: Final = """
SELECT m.name, coalesce(declared.gitlab_schema, m.gitlab_schema), o.owner, m.run,
       (SELECT coalesce(sum(p.applied), 0)::bigint FROM headrace.progress p
         WHERE p.migration = m.name AND p.run = m.run)
  FROM headrace.migrations m
  LEFT JOIN unnest(%(names)s::text[], %(gitlab_schemas)s::text[]) AS declared(name, gitlab_schema)
       ON declared.name = m.name
  JOIN headrace.schema_ownership o ON o.gitlab_schema = coalesce(declared.gitlab_schema, m.gitlab_schema)
  JOIN headrace.database d ON d.name <> o.owner
 ORDER BY m.name
"""
"""The gitlab schema that the migration declares now counts; the one in its ledger only if the migration is gone."""
_LEDGER: Final = """
SELECT c.relname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = 'headrace' AND c.relkind = 'r' AND a.attname = 'migration' AND NOT a.attisdropped
"""
"""Every table of headrace's with rows of a migration has a column of this name; the history, which stays, has not."""


@dataclass(frozen=True)
class StaleRecord:
    """The records in a database of a migration that continues elsewhere; `kept` is the reason not to remove them."""

    database: str
    migration: str
    gitlab_schema: str
    owner: str
    run: int
    applied: int
    kept: str | None = None


def stale_records(settings: Settings, database: str) -> list[StaleRecord]:
    """Return the records in `database` of gitlab schemas that it does not own.

    The owner is the current one, after any number of moves: all databases in the settings are asked. A record is `kept`
    unless exactly one of them claims to own the gitlab schema: during a switchover, which may still be aborted, it may
    be the only record. Raises WrongDatabase.
    """
    with _opened(settings, database) as connection:
        found = connection.execute(_STALE.encode(), _declared(settings)).fetchall()
    answers = ask(settings, settings.databases) if found else Answers((), ())
    records = []
    for name, gitlab_schema, recorded, run, applied in found:
        owner, kept = _confirmed(answers, gitlab_schema)
        records.append(StaleRecord(database, name, gitlab_schema, owner or recorded, run, applied, kept))
    return records


def remove(settings: Settings, database: str, actor: Actor | None = None) -> list[StaleRecord]:
    """Remove the records that need not be kept, and return them. Idempotent.

    Never touches what `database` owns: ownership is checked again under its lock, in the transaction that removes.
    """
    wanted = {record.migration: record for record in stale_records(settings, database) if record.kept is None}
    with _opened(settings, database) as connection, connection.transaction():
        exclude(connection, {ownership_key(record.gitlab_schema) for record in wanted.values()})
        names = [row[0] for row in connection.execute(_STALE.encode(), _declared(settings)) if row[0] in wanted]
        for (table,) in connection.execute(_LEDGER.encode()).fetchall():
            statement = sql.SQL("DELETE FROM {} WHERE migration = ANY(%s)").format(sql.Identifier("headrace", table))
            connection.execute(statement, (names,))
        connection.execute("DELETE FROM headrace.migrations WHERE name = ANY(%s)", (names,))
        record_action(connection, OperatorAction.CLEANUP, names, actor)
    return [wanted[name] for name in names]


def _declared(settings: Settings) -> dict[str, list[str]]:
    known = catalog.migrations(settings).values()
    return {"names": [kind.name for kind in known], "gitlab_schemas": [kind.gitlab_schema for kind in known]}


def _confirmed(answers: Answers, gitlab_schema: str) -> tuple[str | None, str | None]:
    """Return the database that owns `gitlab_schema` by its own rows, or the reason why the owner is unknown."""
    try:
        owner = answers.owner(gitlab_schema)
    except OwnershipMoved as error:
        return None, error.problem
    return owner, None if owner is not None else f"no reachable database records the owner of {gitlab_schema}"


@contextmanager
def _opened(settings: Settings, database: str) -> Iterator[psycopg.Connection[Any]]:
    with connect.session(settings.database(database), name=f"cleanup {database}") as connection:
        require_name(connection, database)
        require_prefix(connection, database, settings.prefix)
        yield connection

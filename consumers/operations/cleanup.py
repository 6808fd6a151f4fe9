"""Records that a switchover left behind: of migrations whose gitlab schema another database owns now (seed 001)."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final

import psycopg
import typer
from psycopg import sql

from consumers.ledger.owner_lookup import Answers, ask
from consumers.operations import catalog
from infra.cli.options import Config, Json, Yes
from infra.postgres import connect
from infra.postgres.advisory_locks import exclude, ownership_key
from infra.postgres.control import WrongDatabase, database_name, require_prefix
from infra.settings.file import load_settings
from infra.settings.model import Settings
from schemas.errors import OwnershipMoved

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
"""What a migration declares now counts; what its ledger was begun for only where there is no such migration."""
_LEDGER: Final = """
SELECT c.relname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = 'headrace' AND c.relkind = 'r' AND a.attname = 'migration' AND NOT a.attisdropped
"""
"""Every table of ours that has rows of a migration says so in a column of this name."""


@dataclass(frozen=True, slots=True)
class StaleRecord:
    """What a database still has of a migration that goes on elsewhere; `kept` says why it is not removed."""

    migration: str
    gitlab_schema: str
    owner: str
    run: int
    applied: int
    kept: str | None = None


def stale_records(settings: Settings, database: str) -> list[StaleRecord]:
    """Return the records in `database` of gitlab schemas that it does not own.

    The owner is that of now, after however many moves: all databases of the settings are asked. A record is `kept`
    unless exactly one of them says that it owns the gitlab schema: in the middle of a switchover, which may still be
    taken back, this record may be the only one. Raises WrongDatabase.
    """
    with _opened(settings, database) as connection:
        found = connection.execute(_STALE.encode(), _declared()).fetchall()
    answers = ask(settings, settings.databases) if found else Answers((), ())
    records = []
    for name, gitlab_schema, recorded, run, applied in found:
        owner, kept = _confirmed(answers, gitlab_schema)
        records.append(StaleRecord(name, gitlab_schema, owner or recorded, run, applied, kept))
    return records


def remove(settings: Settings, database: str) -> list[StaleRecord]:
    """Remove the records that are not to be kept; return them. The second time there are none.

    Never touches what `database` owns: ownership is asked again under its lock, in the transaction that removes.
    """
    wanted = {record.migration: record for record in stale_records(settings, database) if record.kept is None}
    with _opened(settings, database) as connection, connection.transaction():
        exclude(connection, {ownership_key(record.gitlab_schema) for record in wanted.values()})
        names = [row[0] for row in connection.execute(_STALE.encode(), _declared()) if row[0] in wanted]
        for (table,) in connection.execute(_LEDGER.encode()).fetchall():
            statement = sql.SQL("DELETE FROM {} WHERE migration = ANY(%s)").format(sql.Identifier("headrace", table))
            connection.execute(statement, (names,))
        connection.execute("DELETE FROM headrace.migrations WHERE name = ANY(%s)", (names,))
    return [wanted[name] for name in names]


def cleanup(
    database: Annotated[str, typer.Argument(metavar="DATABASE", help="A [databases.NAME] of the settings.")],
    config: Config = None,
    json: Json = False,
    yes: Yes = False,
) -> None:
    """List the records of migrations that a database does not own any more, and with --yes remove them.

    They are what a switchover left behind. Records of what the database owns are never touched, nor any whose new
    owner does not confirm that it is the owner.
    """
    settings = load_settings(config)
    removed = remove(settings, database) if yes else []
    left = stale_records(settings, database)
    if json:
        typer.echo(jsonlib.dumps({"removed": [asdict(each) for each in removed], "stale": [asdict(e) for e in left]}))
        return
    for record in removed:
        typer.echo(f"removed  {_line(record)}")
    for record in left:
        typer.echo(f"stale    {_line(record)}" + (f"; kept: {record.kept}" if record.kept else ""))
    if not removed and not left:
        typer.echo(f"{database} has no records of gitlab schemas that it does not own")
    elif any(record.kept is None for record in left):
        typer.echo(f"remove them with: headrace cleanup {database} --yes")


def _declared() -> dict[str, list[str]]:
    known = catalog.migrations().values()
    return {"names": [kind.name for kind in known], "gitlab_schemas": [kind.gitlab_schema for kind in known]}


def _line(record: StaleRecord) -> str:
    return (
        f"{record.migration} ({record.gitlab_schema}, owned by {record.owner}): run {record.run},"
        f" {record.applied} applied"
    )


def _confirmed(answers: Answers, gitlab_schema: str) -> tuple[str | None, str | None]:
    """Return the database that owns `gitlab_schema` by its own rows, or why none is known to."""
    try:
        owner = answers.owner(gitlab_schema)
    except OwnershipMoved as error:
        return None, error.problem
    return owner, None if owner is not None else f"no database that answers says who owns {gitlab_schema}"


@contextmanager
def _opened(settings: Settings, database: str) -> Iterator[psycopg.Connection[Any]]:
    dsn = settings.database(database).dsn.get_secret_value()
    with connect.connect(dsn, name=f"cleanup {database}") as connection, connect.translated(dsn):
        recorded = database_name(connection)
        if recorded != database:
            raise WrongDatabase(f"the settings call this database {database}, but it is on record as {recorded}")
        require_prefix(connection, database, settings.prefix)
        yield connection

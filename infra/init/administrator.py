"""Generates the script that an administrator runs once to give headrace's roles the least privileges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from infra.postgres import foreign_schema, table_format
from infra.postgres.control import PUBLISHED, control_sql
from infra.rights import acls, privileges, programs
from infra.rights.programs import Program
from infra.settings.model import DatabaseSettings, Settings
from infra.settings.providers import PROVIDERS, SELF_MANAGED, Provider
from schemas import formats


def administrator_script(settings: Settings, wanted: Sequence[Program], provider: str | None = None) -> str:
    """Return SQL for each database of the programs, followed by the Kafka ACL commands as comments.

    The role of a database's dsn gets the privileges of all these programs on that database. For separate roles,
    generate a script per role, with the names of its programs and its dsn. `provider`, by default the settings', is the
    one of all these databases; no server is asked.
    """
    parts = [
        line
        for name, database in settings.databases.items()
        if (own := [program for program in wanted if program.database == name])
        for line in _database(
            name, database, own, settings.prefix, PROVIDERS[provider or database.provider or SELF_MANAGED]
        )
    ]
    return "\n".join([*parts, "", *_kafka(settings, wanted)])


def _database(
    name: str, database: DatabaseSettings, own: Sequence[Program], prefix: str, provider: Provider
) -> Iterator[str]:
    parts = conninfo_to_dict(database.dsn.get_secret_value())
    role = str(parts.get("user") or "headrace")
    where = str(parts.get("dbname") or role)
    replicates = any(program.replicates for program in own)
    yield f"-- Database {name}: run in {where}, as {provider.administrator}. Idempotent."
    yield "-- Unqualified names must not resolve to objects in other schemas."
    yield "SET search_path = pg_catalog, pg_temp;"
    yield "-- Run again, it does not report what exists already."
    yield "SET client_min_messages = warning;"
    yield foreign_schema.script()
    yield f"-- For {', '.join(dict.fromkeys(program.name for program in own))}."
    yield _text(
        "DO $$ BEGIN IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = {literal}) THEN "
        "CREATE ROLE {role} LOGIN; END IF; END $$;",
        literal=sql.Literal(role),
        role=sql.Identifier(role),
    )
    if replicates:
        yield _text(provider.grant, role=sql.Identifier(role))
        yield _text(
            "DO $$ BEGIN IF to_regprocedure('pg_log_standby_snapshot()') IS NOT NULL THEN "
            f"GRANT EXECUTE ON FUNCTION pg_log_standby_snapshot() TO {{role}}; END IF; {_denied(provider)}END $$;",
            role=sql.Identifier(role),
        )
    # Health indicators read other sessions, standbys and the archiver, and the slot monitor the WAL that a slot
    # retains.
    yield _text("GRANT pg_monitor TO {role};", role=sql.Identifier(role))
    if database.password_command:
        yield "-- The role has no password: see the provider's page in docs/how-to/providers/ for logins by tokens."
    else:
        yield "-- Set the password yourself with ALTER ROLE … PASSWORD: no password passes through headrace."
    yield from table_format.statements()
    yield control_sql().strip()
    yield from dict.fromkeys(program.own_tables for program in own if program.own_tables)
    yield from _rows(name, database, prefix)
    yield _text(
        "GRANT CONNECT ON DATABASE {database} TO {role};", database=sql.Identifier(where), role=sql.Identifier(role)
    )
    yield _text("GRANT USAGE ON SCHEMA headrace TO {role};", role=sql.Identifier(role))
    yield _text("GRANT SELECT ON ALL TABLES IN SCHEMA headrace TO {role};", role=sql.Identifier(role))
    yield from privileges.grants(role, programs.privileges(own))
    if replicates:
        yield from _publication(database)
    yield "RESET client_min_messages;"
    yield "RESET search_path;"


def _rows(name: str, database: DatabaseSettings, prefix: str) -> Iterator[str]:
    """Yield what headrace's tables have from the beginning: the database's name, and the gitlab schemas it owns."""
    yield _text(
        "INSERT INTO headrace.database AS d (name, prefix, format, format_by)"
        " VALUES ({name}, {prefix}, {format}, {program})"
        " ON CONFLICT (only_row) DO UPDATE SET prefix = coalesce(d.prefix, excluded.prefix);",
        name=sql.Literal(name),
        prefix=sql.Literal(prefix),
        format=sql.Literal(formats.TABLES.version),
        program=sql.Literal(formats.PROGRAM),
    )
    for gitlab_schema in database.gitlab_schemas:
        yield _text(
            "INSERT INTO headrace.schema_ownership (gitlab_schema, owner) VALUES ({gitlab_schema}, {name})"
            " ON CONFLICT DO NOTHING;",
            gitlab_schema=sql.Literal(gitlab_schema),
            name=sql.Literal(name),
        )


def _denied(provider: Provider) -> str:
    """Return what lets the script continue without a grant that only a superuser can give, and that is optional."""
    return "" if provider.superuser else "EXCEPTION WHEN insufficient_privilege THEN RAISE WARNING '%', SQLERRM; "


def _publication(database: DatabaseSettings) -> Iterator[str]:
    # Only an administrator can expand a pattern to today's tables.
    patterns = sorted(table for table in database.tables if set(table) & set("*?["))
    named = sorted(set(database.tables) - set(patterns))
    for pattern in patterns:
        yield f"-- {pattern} is a pattern: grant SELECT on each matching table and add it to the publication."
    if named:
        tables = sql.SQL(", ").join(sql.Identifier(*table.split(".", 1)) for table in named)
        yield _text(
            "DO $$ BEGIN IF NOT EXISTS (SELECT 1 FROM pg_publication WHERE pubname = {literal}) THEN "
            "CREATE PUBLICATION {publication} WITH (publish_via_partition_root = false); END IF; END $$;",
            literal=sql.Literal(database.publication),
            publication=sql.Identifier(database.publication),
        )
        yield _text(
            # Altered only if needed: a running producer takes every other change for an edit.
            "DO $$ BEGIN IF EXISTS (SELECT FROM pg_publication p WHERE pubname = {literal}"
            " AND to_jsonb(p) ->> 'pubgencols' <> 's') THEN "
            "ALTER PUBLICATION {publication} SET (publish_generated_columns = stored); END IF; END $$;",
            literal=sql.Literal(database.publication),
            publication=sql.Identifier(database.publication),
        )
        if patterns:  # keep the tables that an administrator added for them
            yield from _add_tables(database.publication, [*named, *map(".".join, PUBLISHED)])
        else:
            yield _text(
                "ALTER PUBLICATION {publication} SET TABLE {tables}, {own};",
                publication=sql.Identifier(database.publication),
                tables=tables,
                own=sql.SQL(", ").join(sql.Identifier(*table) for table in PUBLISHED),
            )


def _add_tables(publication: str, tables: list[str]) -> Iterator[str]:
    for table in tables:
        schema, name = table.split(".", 1)
        yield _text(
            "DO $$ BEGIN IF NOT EXISTS (SELECT 1 FROM pg_publication_tables WHERE pubname = {literal}"
            " AND schemaname = {schema} AND tablename = {name}) THEN "
            "ALTER PUBLICATION {publication} ADD TABLE {table}; END IF; END $$;",
            literal=sql.Literal(publication),
            schema=sql.Literal(schema),
            name=sql.Literal(name),
            publication=sql.Identifier(publication),
            table=sql.Identifier(schema, name),
        )


def _kafka(settings: Settings, wanted: Sequence[Program]) -> Iterator[str]:
    yield "-- Kafka with ACLs: `headrace init --acls` prints them for Terraform, with --apply it creates them."
    yield "-- Or run Kafka's kafka-acls.sh; admin.properties contains an administrator's credentials:"
    for line in acls.commands(settings.kafka, programs.acls(wanted)):
        yield f"--   {' '.join(line.splitlines())}"


def _text(template: str, **parts: sql.Composable) -> str:
    return sql.SQL(template).format(**parts).as_string(None)

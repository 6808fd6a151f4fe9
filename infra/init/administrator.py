"""What an administrator runs once, so that headrace's own roles need nothing more than these privileges."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from infra import table_format
from infra.control import PUBLISHED, control_sql, tables_made
from infra.settings import DatabaseSettings, Settings
from schemas import formats

OwnTables = Mapping[str, str]
"""gitlab schema → the statements that make the tables of the migrations that write it."""


def administrator_script(settings: Settings, own_tables: OwnTables = {}) -> str:  # noqa: B006 - read only
    """Return SQL for each database, and the Kafka ACL commands as comments behind it.

    The producer's role may replicate and read the captured tables; the consumer's may keep its ledger and update the
    captured tables. With one role in the dsn for both, it gets both sets.
    """
    parts = [
        line
        for name, database in settings.databases.items()
        for line in _database(name, database, own_tables, settings.prefix)
    ]
    return "\n".join([*parts, "", *_kafka(settings)])


def _database(name: str, database: DatabaseSettings, own_tables: OwnTables, prefix: str) -> Iterator[str]:
    parts = conninfo_to_dict(database.dsn.get_secret_value())
    role = str(parts.get("user") or "headrace")
    where = str(parts.get("dbname") or role)
    yield f"-- Database {name}: run in {where}, as a superuser. May be run again."
    yield _text(
        "DO $$ BEGIN IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = {literal}) THEN "
        "CREATE ROLE {role} LOGIN; END IF; END $$;",
        literal=sql.Literal(role),
        role=sql.Identifier(role),
    )
    yield _text("ALTER ROLE {role} REPLICATION;", role=sql.Identifier(role))
    # The health indicators look at other sessions, standbys and the archive, and a slot's guardian at what it keeps.
    yield _text("GRANT pg_monitor TO {role};", role=sql.Identifier(role))
    yield _text(
        "DO $$ BEGIN IF to_regprocedure('pg_log_standby_snapshot()') IS NOT NULL THEN "
        "GRANT EXECUTE ON FUNCTION pg_log_standby_snapshot() TO {role}; END IF; END $$;",
        role=sql.Identifier(role),
    )
    yield "-- ALTER ROLE … PASSWORD is left to you, so that no password passes through headrace."
    yield from table_format.statements()
    yield control_sql().strip()
    made = "\n".join(own_tables[label].strip() for label in database.gitlab_schemas if own_tables.get(label))
    if made:
        yield made
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
    yield _text(
        "GRANT CONNECT ON DATABASE {database} TO {role};", database=sql.Identifier(where), role=sql.Identifier(role)
    )
    yield _text("GRANT USAGE ON SCHEMA headrace TO {role};", role=sql.Identifier(role))
    yield _text("GRANT SELECT ON ALL TABLES IN SCHEMA headrace TO {role};", role=sql.Identifier(role))
    yield _text(
        "GRANT INSERT, UPDATE ON headrace.migrations, headrace.progress, headrace.heartbeat TO {role};",
        role=sql.Identifier(role),
    )
    # Whoever may insert here may have a topic emptied: no role but headrace's own.
    yield _text("GRANT INSERT, DELETE ON headrace.snapshot_requests TO {role};", role=sql.Identifier(role))
    yield _text(
        "GRANT INSERT, UPDATE, DELETE ON headrace.selections, headrace.dead_letters, headrace.holds,"
        " headrace.failures TO {role};",
        role=sql.Identifier(role),
    )
    for table in tables_made(made):
        yield _text(
            "GRANT INSERT, UPDATE, DELETE ON headrace.{table} TO {role};",
            table=sql.Identifier(table),
            role=sql.Identifier(role),
        )
    # A pattern stays a pattern: only an administrator can say which tables it means today.
    patterns = sorted(table for table in database.tables if set(table) & set("*?["))
    named = sorted(set(database.tables) - set(patterns))
    for pattern in patterns:
        yield f"-- {pattern} is a pattern: grant SELECT, UPDATE and add to the publication each table that it means."
    if named:
        tables = sql.SQL(", ").join(sql.Identifier(*table.split(".", 1)) for table in named)
        schemas = sql.SQL(", ").join(map(sql.Identifier, sorted({table.split(".", 1)[0] for table in named})))
        yield _text("GRANT USAGE ON SCHEMA {schemas} TO {role};", schemas=schemas, role=sql.Identifier(role))
        yield _text("GRANT SELECT, UPDATE ON {tables} TO {role};", tables=tables, role=sql.Identifier(role))
        yield _text(
            "DO $$ BEGIN IF NOT EXISTS (SELECT 1 FROM pg_publication WHERE pubname = {literal}) THEN "
            "CREATE PUBLICATION {publication} WITH (publish_via_partition_root = false); END IF; END $$;",
            literal=sql.Literal(database.publication),
            publication=sql.Identifier(database.publication),
        )
        yield _text(
            # Altered once: a running producer takes every other change of it for an edit.
            "DO $$ BEGIN IF EXISTS (SELECT FROM pg_publication p WHERE pubname = {literal}"
            " AND to_jsonb(p) ->> 'pubgencols' <> 's') THEN "
            "ALTER PUBLICATION {publication} SET (publish_generated_columns = stored); END IF; END $$;",
            literal=sql.Literal(database.publication),
            publication=sql.Identifier(database.publication),
        )
        if patterns:  # what an administrator added for them stays
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


def _kafka(settings: Settings) -> Iterator[str]:
    server = f"--bootstrap-server {shlex.quote(settings.kafka.bootstrap_servers)}"
    prefix = shlex.quote(settings.prefix)
    yield "-- Kafka, where ACLs are on; kafka-acls.sh is in Kafka's own bin directory:"
    producer = (
        f"--operation Read --operation Write --operation Create --operation Describe --operation DescribeConfigs"
        f" --topic {prefix}. --resource-pattern-type prefixed"
    )
    yield f"--   kafka-acls.sh {server} --add --allow-principal User:headrace-producer {producer}"
    transactional = f"--operation Write --operation Describe --transactional-id {prefix}."
    yield (
        f"--   kafka-acls.sh {server} --add --allow-principal User:headrace-producer {transactional}"
        " --resource-pattern-type prefixed"
    )
    yield (
        f"--   kafka-acls.sh {server} --add --allow-principal User:headrace-producer --operation Read"
        f" --group {prefix}. --resource-pattern-type prefixed"
    )
    for gitlab_schema in sorted({each for database in settings.databases.values() for each in database.gitlab_schemas}):
        who = f"User:headrace-consumer-{gitlab_schema}"
        yield (
            f"--   kafka-acls.sh {server} --add --allow-principal {who} --operation Read --operation Describe"
            f" --topic {prefix}.{gitlab_schema}. --resource-pattern-type prefixed"
        )
        for topic in ("positions", "schemas"):
            yield (
                f"--   kafka-acls.sh {server} --add --allow-principal {who} --operation Read --operation Describe"
                f" --topic {prefix}.{topic}"
            )
        yield (
            f"--   kafka-acls.sh {server} --add --allow-principal {who} --operation Read --operation Write"
            f" --operation Create --operation Describe --topic {prefix}.parked. --resource-pattern-type prefixed"
        )
        yield (
            f"--   kafka-acls.sh {server} --add --allow-principal {who} --operation Read --operation Describe"
            f" --operation Delete --group {prefix}. --resource-pattern-type prefixed"
        )


def _text(template: str, **parts: sql.Composable) -> str:
    return sql.SQL(template).format(**parts).as_string(None)

"""Tables, keys and values of backfills: names that need quotes, keys of several types."""

from __future__ import annotations

import threading
import uuid
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from consumers.contract.backfill import Backfill, BackfillOptions, NotExpanded
from consumers.contract.decisions import Change
from consumers.schema.executor import Alterations
from consumers.schema.plan import Release
from infra.postgres.connect import connect
from infra.postgres.control import ensure_control_schema
from schemas.errors import Refused
from tests.conftest import Database

pytestmark = pytest.mark.stack

ODD = 'a "table"; with'


class Odd(Backfill):
    """All its names need quotes."""

    name = "odd"
    gitlab_schema = "registry"
    table = f"public.{ODD}"
    key = (("Group", "uuid"), ("it's", "text"), ("part", "numeric(4, 1)"))
    column, column_type = 'x" or 1=1', "numeric(6, 2)"
    value = 1.5
    checks = (("small", '"x"" or 1=1" < 100'),)


KEYS = [(uuid.UUID(int=n % 2), f"x'{n}", Decimal(n) / 2) for n in range(6)]


@pytest.fixture
def connection(database: Database) -> psycopg.Connection[Any]:
    opened = database.connect()
    ensure_control_schema(opened, "main", ["registry"])
    name = ODD.replace('"', '""')
    opened.execute(
        f'CREATE TABLE "{name}" ("Group" uuid, "it\'s" text, part numeric(4, 1), PRIMARY KEY (part, "it\'s", "Group"))'
    )
    with opened.cursor() as cursor:
        cursor.executemany(f'INSERT INTO "{name}" VALUES (%s, %s, %s)', KEYS)
    return opened


def test_backfill_handles_quoted_names_and_composite_keys(connection: psycopg.Connection[Any]) -> None:
    migration = Odd(BackfillOptions())
    alterations = Alterations(connection, migration, "main", stopping=threading.Event())
    with pytest.raises(NotExpanded), connection.transaction(), connection.cursor() as cursor:
        migration.apply(cursor, [Change(KEYS[0])])
    alterations.carry_out(Release.EXPAND)
    wanted = [Change(key) for key in (KEYS[5], KEYS[1], KEYS[1], (uuid.UUID(int=9), "gone", Decimal(1)))]
    with connection.transaction(), connection.cursor() as cursor:
        assert migration.apply(cursor, wanted) == 2
        assert migration.apply(cursor, wanted) == 0
        assert migration.remaining(cursor) == 4
        assert migration.apply(cursor, [Change(key) for key in KEYS]) == 4
    alterations.carry_out(Release.CONTRACT)
    with pytest.raises(psycopg.errors.CheckViolation):
        connection.execute('INSERT INTO "a ""table""; with" VALUES (gen_random_uuid(), %s, 1, 100)', ("y",))
    alterations.carry_out(Release.CONTRACT_DOWN)
    alterations.carry_out(Release.EXPAND_DOWN)
    assert alterations.found().column_type is None


class OwnTypes(Backfill):
    """Its key and its column have types that are not built in."""

    name = "own_types"
    gitlab_schema = "registry"
    table = "public.moods"
    key = (("name", "extensions.citext"), ("part", "int"))
    column, column_type = "mood", "public.mood"
    value = "calm"


class BareType(OwnTypes):
    """Its column's type is not qualified with a schema."""

    name = "bare_type"
    column_type = "mood"


def test_backfill_handles_types_that_are_not_built_in(database: Database) -> None:
    application = database.connect()
    ensure_control_schema(application, "main", ["registry"])
    application.execute(
        "CREATE SCHEMA extensions; CREATE EXTENSION citext SCHEMA extensions;"
        " CREATE TYPE public.mood AS ENUM ('calm', 'cross');"
        " CREATE TABLE public.moods (name extensions.citext, part int, PRIMARY KEY (name, part));"
        " INSERT INTO public.moods SELECT 'Name ' || n, n FROM generate_series(1, 9) n"
    )
    migration = OwnTypes(BackfillOptions())
    with connect(database.dsn, name="test") as connection:
        with pytest.raises(Refused, match=r"no type mood, which bare_type declares; .* needs its schema"):
            Alterations(connection, BareType(BackfillOptions()), "main", stopping=threading.Event()).found()
        alterations = Alterations(connection, migration, "main", stopping=threading.Event())
        alterations.carry_out(Release.EXPAND)
        with connection.transaction(), connection.cursor() as cursor:
            # Compared by its type: the event may have another spelling.
            assert migration.apply(cursor, [Change((f"NAME {n}", n)) for n in range(1, 10)]) == 9
            assert migration.remaining(cursor) == 0
        alterations.carry_out(Release.CONTRACT)
        assert alterations.found(count=True).column_type == "public.mood"

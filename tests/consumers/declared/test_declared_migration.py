"""A declared migration keeps every promise of a coded one: keys of a uuid, of several columns, with a prefilter."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import ClassVar

import psycopg
import pytest

from consumers.operations.authoring.trial import NoEvent, attempt
from consumers.runtime.assembly import consumer_of
from consumers.testing.promises import PROMISES, NotApplicable
from consumers.testing.table_case import DATABASE, TableCase
from consumers.testing.world import World, world_of
from schemas.errors import UsageError
from tests.conftest import Database
from tests.consumers.declared.declaring import declare

pytestmark = pytest.mark.stack


class People(TableCase):
    """A key of a uuid."""

    migration: ClassVar = declare()
    create_sql = "CREATE TABLE public.people (id uuid PRIMARY KEY, name text NOT NULL, nick text)"
    insert_sql = """
        INSERT INTO public.people SELECT md5(n::text)::uuid, 'Name ' || n, CASE WHEN n % 3 = 0 THEN 'own' END
          FROM generate_series(1, 30) n
    """
    effect_sql = "UPDATE public.people SET nick = lower(name) WHERE nick IS NULL"


class Places(TableCase):
    """A key of several columns and types, a prefilter, and signs that mean something to the driver."""

    migration: ClassVar = declare(
        table='public.the "old" places',
        key=["Group", "since"],
        where="state = 'op%n' AND \"%s\" % 2 = 0",
        set={"state": "'100%'", "note": "coalesce(note, '') || '%s'"},
        prefilter="state = 'op%n'",
    )
    create_sql = """
        CREATE TABLE public."the ""old"" places" (
            since timestamptz, "Group" text, state text, note text, "%s" int, PRIMARY KEY ("Group", since)
        )
    """
    insert_sql = """
        INSERT INTO public."the ""old"" places"
        SELECT '2026-01-01'::timestamptz + n * interval '1 hour', 'g,"' || n % 2, CASE WHEN n % 3 = 0 THEN 'op%n' END,
               NULL, n FROM generate_series(1, 30) n
    """
    effect_sql = """
        UPDATE public."the ""old"" places" SET state = '100%', note = '%s' WHERE state = 'op%n' AND "%s" % 2 = 0
    """


def world_for(case: type[TableCase], servers: str, prefix: str, database: Database, directory: Path) -> World:
    return world_of(case.migration, case, servers, prefix, database.connect(), database.dsn, directory)


@pytest.mark.parametrize("case", [People, Places])
@pytest.mark.parametrize("promise", PROMISES)
def test_declared_migration_keeps_the_promise(
    case: type[TableCase], promise: str, bootstrap_servers: str, prefix: str, database: Database, tmp_path: Path
) -> None:
    try:
        PROMISES[promise](world_for(case, bootstrap_servers, prefix, database, tmp_path))
    except NotApplicable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def people(bootstrap_servers: str, prefix: str, database: Database, tmp_path: Path) -> World:
    world = world_for(People, bootstrap_servers, prefix, database, tmp_path)
    world.case.insert()
    world.case.publish()
    return world


def test_refusal_comes_before_the_first_transaction(people: World) -> None:
    migration = declare(set={"nick": "random()::text"}).configure(people.settings.migration("nicks"))
    member = consumer_of(people.settings, migration, DATABASE, stopping=threading.Event(), until_caught_up=True)
    with pytest.raises(UsageError, match=r"headrace\.toml:5: \[migrations\.nicks\.declare\] set\.nick: calls random"):
        member.run()
    assert people.case.writes() == 0


def _key(connection: psycopg.Connection[object], condition: str) -> str:
    row = connection.execute(f"SELECT id::text FROM public.people WHERE {condition} ORDER BY 1".encode()).fetchone()
    assert isinstance(row, tuple)
    return str(row[0])


def test_trial_shows_the_statement_and_writes_nothing(people: World) -> None:
    before, key = people.case.rows(), _key(people.connection, "nick IS NULL")
    found = attempt(people.settings, people.configured(), DATABASE, [key.upper()])
    assert (found.key, found.operation, found.decision, found.changed) == ({"id": key}, "r", "change", 1)
    (statement,) = found.statements
    assert statement.startswith('UPDATE "public"."people" SET "nick" = (lower(name)')
    assert key.replace("-", "") in statement
    assert people.case.rows() == before


def test_trial_says_why_the_statement_fails(people: World) -> None:
    people.connection.execute("ALTER TABLE public.people ADD CONSTRAINT short CHECK (length(nick) < 4)")
    key = _key(people.connection, "nick IS NULL")
    with pytest.raises(UsageError, match=r'the SQL of nicks failed for this row: .*"short".*; correct it, or the row'):
        attempt(people.settings, people.configured(), DATABASE, [key])


def test_trial_of_a_row_that_is_up_to_date_or_skipped(people: World) -> None:
    key = _key(people.connection, "nick IS NOT NULL")
    assert attempt(people.settings, people.configured(), DATABASE, [key]).changed == 0
    filtered = declare(prefilter="nick IS NULL").configure(people.settings.migration("nicks"))
    found = attempt(people.settings, filtered, DATABASE, [key])
    assert (found.decision, found.reason, found.statements, found.changed) == ("skip", "prefilter", (), None)


def test_trial_of_a_deleted_row_is_by_its_delete(people: World) -> None:
    key = _key(people.connection, "true")
    people.case.recreate()
    assert attempt(people.settings, people.configured(), DATABASE, [key]).operation == "r"
    people.case._read[0].publish_deleted()  # type: ignore[attr-defined]
    found = attempt(people.settings, people.configured(), DATABASE, [key])
    assert (found.operation, found.decision, found.reason) == ("d", "skip", "deleted")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["5"], r'key column id: "5" is not a uuid; write --key VALUE'),
        (["00000000-0000-0000-0000-000000000000"], r"has no event of the row id=00000000-0000.*; Check the key"),
        (["a,b"], r'key column id: "a" is not a uuid'),
        (["id=5"], r"is not a uuid"),
    ],
)
def test_trial_says_what_is_wrong_with_a_key(people: World, keys: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        attempt(people.settings, people.configured(), DATABASE, keys)


def test_trial_of_a_key_of_several_columns(
    bootstrap_servers: str, prefix: str, database: Database, tmp_path: Path
) -> None:
    world = world_for(Places, bootstrap_servers, prefix, database, tmp_path)
    with pytest.raises(NoEvent, match=r"has no events; start its producer first"):
        attempt(world.settings, world.configured(), DATABASE, ["5"])
    world.case.insert()
    world.case.publish()
    with pytest.raises(UsageError, match=r"has 2 columns; write --key Group=… --key since=…"):
        attempt(world.settings, world.configured(), DATABASE, ["5"])
    with pytest.raises(UsageError, match=r"--key is not the key of one row"):
        attempt(world.settings, world.configured(), DATABASE, ["since=2026-01-01T06:00:00Z"])
    keys = ["since=2026-01-01T06:00:00Z", 'Group="g,""0"']
    found = attempt(world.settings, world.configured(), DATABASE, keys)
    assert (found.decision, found.changed) == ("change", 1)
    with pytest.raises(UsageError, match=r"does not read public\.x; choose one with --table"):
        attempt(world.settings, world.configured(), DATABASE, keys, "public.x")

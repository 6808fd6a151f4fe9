"""A consumer under settings of its role or database, and with triggers on the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from infra.settings.model import Settings
from schemas.errors import HeadraceError
from tests.conftest import Database
from tests.consumers.container_repositories import TOO_MANY_TAGS, Feed, fill, written

pytestmark = pytest.mark.stack

Connection = psycopg.Connection[Any]
ROWS = dict.fromkeys(range(1, 41), TOO_MANY_TAGS)


@pytest.mark.parametrize(
    "setting",
    [
        "default_transaction_isolation = 'serializable'",
        "default_transaction_isolation = 'repeatable read'",
        "lock_timeout = '1ms'",
        "search_path = ''",
    ],
)
def test_consumer_applies_in_read_committed_regardless_of_database_default(
    feed: Feed, connection: Connection, database: Database, catch_up: Callable[..., Any], setting: str
) -> None:
    fill(connection, ROWS)
    feed.snapshot(ROWS)
    connection.execute(
        "CREATE TABLE public.seen (isolation text);"
        " CREATE FUNCTION public.look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        "  INSERT INTO public.seen VALUES (current_setting('transaction_isolation'));"
        "  RETURN NEW; END $$;"
        " CREATE TRIGGER look BEFORE UPDATE ON public.container_repositories"
        " FOR EACH ROW EXECUTE FUNCTION public.look();"
        f' ALTER DATABASE "{database.name}" SET {setting}'
    )

    assert catch_up().applied == 40

    found = connection.execute("SELECT DISTINCT isolation FROM public.seen").fetchall()
    assert found == [("read committed",)]


@pytest.mark.parametrize("by_setting", [False, True])
def test_trigger_with_unqualified_name_stops_consumer_until_it_has_a_search_path(
    by_setting: bool, settings: Settings, feed: Feed, connection: Connection, catch_up: Callable[..., Any]
) -> None:
    fill(connection, ROWS)
    feed.snapshot(ROWS)
    connection.execute(
        "CREATE TABLE public.noted (id bigint);"
        " CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO noted VALUES (NEW.id); RETURN NEW; END $$;"
        " CREATE TRIGGER note AFTER UPDATE ON public.container_repositories"
        " FOR EACH ROW EXECUTE FUNCTION public.note()"
    )
    with pytest.raises(HeadraceError, match=r"42P01 .*qualify every name with its schema.*ALTER FUNCTION"):
        catch_up()
    assert written(connection) == []

    if by_setting:
        main = settings.database("main").model_copy(update={"search_path": ("public",)})
        settings = settings.model_copy(update={"databases": {"main": main}})
    else:
        connection.execute("ALTER FUNCTION public.note() SET search_path = public")

    assert catch_up(settings).applied == 40
    assert connection.execute("SELECT count(*) FROM public.noted").fetchone() == (40,)

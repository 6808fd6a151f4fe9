from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from select import select

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from consumers.ledger import fence
from consumers.ledger.fence import DeclarationChanged, Failed, Paused, RunReplaced
from consumers.ledger.progress import Ledger
from consumers.testing.waiting import until
from infra.postgres.advisory_locks import exclude, migration_key, ownership_key
from infra.postgres.control import ensure_control_schema
from schemas.errors import OwnershipMoved
from schemas.xid_snapshot import Hidden
from tests.conftest import Database
from tests.consumers.services import advisory_lock_is_waited_for

pytestmark = pytest.mark.stack


@pytest.fixture
def connection(database: Database) -> psycopg.Connection:
    opened = database.connect()
    ensure_control_schema(opened, "main", ["gitlab_main"])
    return opened


@pytest.fixture(params=["in a transaction", "with its transaction"])
def hold(connection: psycopg.Connection, request: pytest.FixtureRequest) -> Callable[..., None]:
    Ledger("m", "gitlab_main", "here:1").begin(connection)

    def hold(database: str = "main", run: int = 1) -> None:
        with connection.transaction(), connection.cursor() as cursor:
            fence.hold(cursor, migration="m", run=run, gitlab_schema="gitlab_main", database=database)

    def begin_and_hold(database: str = "main", run: int = 1) -> None:
        with held(connection, database, run):
            pass

    return hold if request.param == "in a transaction" else begin_and_hold


def held(
    connection: psycopg.Connection, database: str = "main", run: int = 1, *, undone: bool = False
) -> AbstractContextManager[tuple[psycopg.Cursor, Hidden]]:
    return fence.transaction(
        connection, migration="m", run=run, gitlab_schema="gitlab_main", database=database, undone=undone
    )


def test_owner_may_write(hold: Callable[..., None]) -> None:
    hold()


@pytest.mark.parametrize(
    ("statement", "error", "message"),
    [
        ("UPDATE headrace.schema_ownership SET owner = 'ci'", OwnershipMoved, "owned by ci, not by main"),
        ("DELETE FROM headrace.schema_ownership", OwnershipMoved, "no owner recorded for gitlab_main"),
        ("UPDATE headrace.database SET name = 'ci'", OwnershipMoved, "call this database main, .* as ci"),
        ("DELETE FROM headrace.database", OwnershipMoved, "recorded as None"),
        ("UPDATE headrace.migrations SET paused = true", Paused, "m is paused"),
        ("UPDATE headrace.migrations SET failed = 'it broke'", Failed, "m has failed: it broke"),
        ("UPDATE headrace.migrations SET run = 2", RunReplaced, "run 1 of m was replaced by run 2"),
    ],
)
def test_refused_write_names_its_reason(
    hold: Callable[..., None],
    connection: psycopg.Connection,
    statement: str,
    error: type[Exception],
    message: str,
) -> None:
    connection.execute(statement)
    with pytest.raises(error, match=message):
        hold()


@pytest.mark.parametrize("key", [ownership_key("gitlab_main"), migration_key("m")])
def test_change_of_owner_run_or_pause_waits_for_running_transaction(
    hold: Callable[..., None], connection: psycopg.Connection, database: Database, key: int
) -> None:
    other = database.connect()
    other.execute("SET lock_timeout = '200ms'")
    with connection.transaction(), connection.cursor() as cursor:
        fence.hold(cursor, migration="m", run=1, gitlab_schema="gitlab_main", database="main")
        with pytest.raises(psycopg.errors.LockNotAvailable), other.transaction():
            exclude(other, [key])
    with other.transaction():
        exclude(other, [key])


@pytest.mark.parametrize(
    ("key", "statement", "error"),
    [
        (ownership_key("gitlab_main"), "UPDATE headrace.schema_ownership SET owner = 'ci'", OwnershipMoved),
        (migration_key("m"), "UPDATE headrace.migrations SET paused = true", Paused),
        (migration_key("m"), "UPDATE headrace.migrations SET run = 2", RunReplaced),
    ],
)
def test_fence_sees_the_change_it_waited_for(
    hold: Callable[..., None], database: Database, key: int, statement: str, error: type[Exception]
) -> None:
    """Ownership, run and pause are read under a snapshot taken after the locks."""
    changing = database.connect()
    with ThreadPoolExecutor(1) as pool:
        with changing.transaction():
            exclude(changing, [key])
            changing.execute(statement)
            held = pool.submit(hold)
            until(lambda: advisory_lock_is_waited_for(database.connect()), "the fence waits for the lock")
        with pytest.raises(error):
            held.result()


def test_fence_checks_declared_gitlab_schema_not_recorded_one(connection: psycopg.Connection) -> None:
    """After a corrected declaration: its old schema is still owned, the schema it really writes was given away."""
    Ledger("m", "gitlab_main", "here:1").begin(connection)
    connection.execute("INSERT INTO headrace.schema_ownership (gitlab_schema, owner) VALUES ('gitlab_ci', 'ci')")
    with (
        pytest.raises(OwnershipMoved, match="gitlab_ci is owned by ci, not by main"),
        connection.transaction(),
        connection.cursor() as cursor,
    ):
        fence.hold(cursor, migration="m", run=1, gitlab_schema="gitlab_ci", database="main")


def test_changed_declaration_is_refused_until_replay(connection: psycopg.Connection) -> None:
    Ledger("m", "gitlab_main", "here:1").begin(connection)
    connection.execute("INSERT INTO headrace.schema_ownership (gitlab_schema, owner) VALUES ('gitlab_ci', 'main')")
    wanted = "m was started for gitlab schema gitlab_main, but now declares gitlab_ci; .*headrace replay"
    with pytest.raises(DeclarationChanged, match=wanted):
        Ledger("m", "gitlab_ci", "here:1").begin(connection)
    with (
        pytest.raises(DeclarationChanged, match=wanted),
        connection.transaction(),
        connection.cursor() as cursor,
    ):
        fence.hold(cursor, migration="m", run=1, gitlab_schema="gitlab_ci", database="main")


def test_fence_returns_transactions_not_visible_yet(hold: Callable[..., None], database: Database) -> None:
    committing, looking = database.connect(), database.connect()
    with committing.transaction():
        (xid,) = committing.execute("SELECT pg_current_xact_id()::text::bigint").fetchone() or (0,)
        with looking.transaction(), looking.cursor() as cursor:
            hidden = fence.hold(cursor, migration="m", run=1, gitlab_schema="gitlab_main", database="main")
            assert hidden.full(xid % 2**32) == xid
    with looking.transaction(), looking.cursor() as cursor:
        hidden = fence.hold(cursor, migration="m", run=1, gitlab_schema="gitlab_main", database="main")
        assert hidden.full(xid % 2**32) is None


def test_fenced_transaction_commits_unless_it_is_undone_or_fails(connection: psycopg.Connection) -> None:
    Ledger("m", "gitlab_main", "here:1").begin(connection)
    connection.execute("CREATE TABLE public.written (by text)")
    with held(connection) as (cursor, _):
        cursor.execute("INSERT INTO public.written VALUES ('committed')")
    with held(connection, undone=True) as (cursor, _):
        cursor.execute("INSERT INTO public.written VALUES ('undone')")
    with pytest.raises(psycopg.errors.UndefinedTable), held(connection) as (cursor, _):
        cursor.execute("INSERT INTO public.written VALUES ('failed'); SELECT FROM public.missing")
    assert connection.info.transaction_status == TransactionStatus.IDLE
    assert connection.execute("SELECT by FROM public.written").fetchall() == [("committed",)]


def test_fence_that_times_out_says_so_and_leaves_a_usable_connection(
    hold: Callable[..., None], connection: psycopg.Connection, database: Database
) -> None:
    connection.execute("SET lock_timeout = '50ms'")
    changing = database.connect()
    with changing.transaction():
        exclude(changing, [migration_key("m")])
        with pytest.raises(psycopg.errors.LockNotAvailable):
            hold()
    assert connection.info.transaction_status == TransactionStatus.IDLE
    hold()


def test_first_error_is_raised_even_if_it_arrives_while_later_statements_are_sent(
    connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_early(cursor: psycopg.Cursor, *_: str) -> None:
        cursor.connection.execute("SELECT 1 / 0")
        cursor.execute("SELECT 1")
        select([cursor.connection.fileno()], [], [], 10.0)

    monkeypatch.setattr(fence, "_ask_to_hold", fail_early)
    with pytest.raises(psycopg.errors.DivisionByZero), held(connection):
        pass
    assert connection.info.transaction_status == TransactionStatus.IDLE


def test_ten_concurrent_consumers_use_no_multixact(
    hold: Callable[..., None], database: Database, connection: psycopg.Connection
) -> None:
    """Row locks shared by sessions need multixacts, each of which costs a WAL record and has to be frozen."""

    def next_multixact() -> object:
        connection.execute("CHECKPOINT")
        return connection.execute("SELECT next_multixact_id FROM pg_control_checkpoint()").fetchone()

    before = next_multixact()
    together = threading.Barrier(10)

    def consume() -> None:
        own = database.connect()
        ledger = Ledger("m", "gitlab_main", "here:1")
        for _ in range(20):
            ledger.begin(own)
            with own.transaction(), own.cursor() as cursor:
                fence.hold(cursor, migration="m", run=1, gitlab_schema="gitlab_main", database="main")
                together.wait()  # all ten hold it concurrently

    with ThreadPoolExecutor(10) as pool:
        for consumer in [pool.submit(consume) for _ in range(10)]:
            consumer.result()
    assert next_multixact() == before

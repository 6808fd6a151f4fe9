"""Connections to a real server, and the errors if that fails."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from infra.postgres.connect import asked_in_one_snapshot, connect, described, one_line, pinned, session, translated
from infra.settings.model import DatabaseSettings
from infra.stack import Stack
from schemas.errors import DatabaseUnavailable, HeadraceError, PreflightFailed, SettingsError
from tests.conftest import Database
from tests.overloaded import pinned_slowly

GUESS = "wrong-s3cret"


@pytest.fixture
def password(database: Database) -> str:
    return str(conninfo_to_dict(database.dsn)["password"])


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port without a listener, reserved during the test."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def refused(dsn: str, expected: type[HeadraceError], password: str) -> str:
    """Return the message of a connection that fails; no form of the error has a password in it."""
    with pytest.raises(expected) as caught:
        connect(dsn, name="test")
    error: BaseException | None = caught.value
    while error is not None:
        assert password not in str(error)
        assert GUESS not in str(error)
        error = error.__cause__
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("wrong", [{"password": GUESS}, {"user": "nobody_here", "password": GUESS}])
def test_wrong_password_or_user(database: Database, password: str, wrong: dict[str, str]) -> None:
    message = refused(make_conninfo(database.dsn, **wrong), SettingsError, password)
    assert f"/{database.name} rejects the user or the password of the dsn; correct the dsn or create" in message
    assert "`headrace init --sql` prints the SQL" in message


def test_no_password(database: Database, password: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSFILE", "/dev/null")
    parts = {**conninfo_to_dict(database.dsn), "password": None}
    message = refused(make_conninfo("", **parts), SettingsError, password)
    assert "rejects the user or the password of the dsn" in message


def test_wrong_database(database: Database, password: str) -> None:
    message = refused(make_conninfo(database.dsn, dbname="not_there"), SettingsError, password)
    assert "/not_there does not exist on that server; correct the dsn or create the database" in message


def test_wrong_host(database: Database, password: str) -> None:
    message = refused(make_conninfo(database.dsn, host="host.invalid"), SettingsError, password)
    assert "PostgreSQL at host.invalid:" in message
    assert "is on a host whose name cannot be resolved; correct the dsn" in message


def test_closed_port(database: Database, password: str, closed_port: int) -> None:
    message = refused(make_conninfo(database.dsn, port=closed_port), DatabaseUnavailable, password)
    assert f"PostgreSQL at 127.0.0.1:{closed_port}/{database.name} does not answer" in message
    assert "Check that PostgreSQL is running" in message


def test_a_server_that_is_no_postgres(database: Database, password: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        dsn = make_conninfo(database.dsn, port=listening.getsockname()[1], connect_timeout=2)
        assert "does not answer" in refused(dsn, DatabaseUnavailable, password)


def test_a_role_that_may_not_log_in(stack: Stack, database: Database, password: str) -> None:
    role = f"{database.name}_closed"
    with stack.postgres.connect() as connection:
        connection.execute(f"CREATE ROLE {role} PASSWORD '{GUESS}'")
        try:
            message = refused(make_conninfo(database.dsn, user=role, password=GUESS), SettingsError, password)
        finally:
            connection.execute(f"DROP ROLE {role}")
    assert "does not let the user of the dsn connect; correct the dsn" in message


def test_an_option_that_is_not_valid(database: Database, password: str) -> None:
    message = refused(f"{database.dsn}?sslmode=sometimes", SettingsError, password)
    assert "has an invalid dsn" in message


def test_connection_sets_application_name(database: Database) -> None:
    with connect(database.dsn, name="produce main") as connection:
        assert connection.autocommit
        assert connection.info.get_parameters()["application_name"] == "headrace produce main"
        found = connection.execute("SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()")
        assert found.fetchone() == ("headrace produce main",)


CANONICAL = {
    "'2024-05-06'::date": "2024-05-06",
    "'2024-05-06 07:08:09.5+02'::timestamptz": "2024-05-06 05:08:09.5+00",
    "interval '1 year 2 days 03:04:05'": "1 year 2 days 03:04:05",
    "0.1::float8 + 0.2::float8": "0.30000000000000004",
    r"'\x00ff'::bytea": r"\x00ff",
}


def test_text_form_is_canonical_whatever_the_role_sets(stack: Stack, database: Database) -> None:
    with stack.postgres.connect() as connection:
        for setting in (
            "datestyle = 'SQL, DMY'",
            "intervalstyle = 'iso_8601'",
            "timezone = 'Asia/Kathmandu'",
            "extra_float_digits = 0",
            "bytea_output = 'escape'",
        ):
            connection.execute(f"ALTER DATABASE {database.name} SET {setting}")
    query = "SELECT " + ", ".join(f"({expression})::text" for expression in CANONICAL)
    with connect(database.dsn, name="test") as ordinary:
        assert ordinary.execute(query).fetchone() != tuple(CANONICAL.values()), "the database's own settings differ"
    # What the dsn itself asks for stays, where headrace does not rely on it.
    dsn = make_conninfo(database.dsn, options="-c work_mem=123kB")
    with connect(dsn, name="test", reading=True) as canonical:
        assert canonical.execute(query).fetchone() == tuple(CANONICAL.values())
        assert canonical.execute("SHOW work_mem").fetchone() == ("123kB",)


@pytest.mark.parametrize("before", [4, 5, 6])
def test_question_that_failed_leaves_no_other_one_unanswered(database: Database, before: int) -> None:
    """psycopg prepares by itself what is executed for the sixth time, here in a pipeline that an error ends."""
    with connect(database.dsn, name="test") as connection:

        def ask(divisor: int) -> tuple[int, ...] | None:
            with asked_in_one_snapshot(connection):
                connection.execute("SELECT 1 / %s::int4", (divisor,))
                asked = connection.execute("SELECT %s::int4", (divisor,))
            return asked.fetchone()

        for _ in range(before):
            ask(1)
        with pytest.raises(psycopg.errors.DivisionByZero):
            ask(0)
        assert ask(1) == (1,)
        assert connection.prepare_threshold is not None, "other statements are prepared as before"


def test_missing_privilege_names_the_remedy(stack: Stack, database: Database, password: str) -> None:
    role = f"{database.name}_plain"
    with stack.postgres.connect() as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{GUESS}'")
    try:
        dsn = make_conninfo(database.dsn, user=role, password=GUESS)
        with (
            connect(dsn, name="test") as connection,
            pytest.raises(
                PreflightFailed, match="permission denied for schema public; grant it: `headrace init --sql`"
            ),
            translated(dsn),
        ):
            connection.execute("CREATE TABLE public.a ()")
    finally:
        with stack.postgres.connect() as connection:
            connection.execute(f"DROP ROLE {role}")


def test_a_lost_connection_is_a_server_that_does_not_answer(database: Database) -> None:
    with connect(database.dsn, name="test") as connection, connect(database.dsn, name="other") as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,))
        with pytest.raises(DatabaseUnavailable, match=f"/{database.name} does not answer"), translated(database.dsn):
            connection.execute("SELECT 1")


def test_error_of_a_server_is_not_reported_as_no_answer(database: Database) -> None:
    with connect(database.dsn, name="test") as connection, connect(database.dsn, name="other") as other:
        connection.execute("CREATE TABLE public.held ()")
        connection.execute("SET lock_timeout = '1ms'")
        with other.transaction():
            other.execute("LOCK TABLE public.held")
            with pytest.raises(HeadraceError) as caught, translated(database.dsn):
                connection.execute("SELECT FROM public.held")
    assert not isinstance(caught.value, DatabaseUnavailable)
    assert "canceling statement due to lock timeout" in str(caught.value)


def test_session_ends_with_its_work_and_translates_the_errors_in_it(database: Database) -> None:
    section = DatabaseSettings.model_validate({"dsn": database.dsn, "gitlab_schemas": ("gitlab_main",)})
    with session(section, name="test") as connection:
        assert connection.execute("SHOW application_name").fetchone() == ("headrace test",)
    assert connection.closed
    with pytest.raises(HeadraceError, match="division by zero"), session(section, name="test") as connection:
        connection.execute("SELECT 1 / 0")
    assert connection.closed


def test_full_disk_of_the_server_is_reported(database: Database) -> None:
    with (
        connect(database.dsn, name="test") as connection,
        pytest.raises(HeadraceError, match=r"has no disk space left: .*; free some space on the server"),
        translated(database.dsn),
    ):
        # The server's own error, raised by its own code: only the disk is not really full.
        connection.execute("DO $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$")


def test_described_shows_neither_user_nor_password() -> None:
    assert described("postgresql://u:s3cret@db.example:6543/gitlabhq") == "PostgreSQL at db.example:6543/gitlabhq"
    assert described("user=u password=s3cret dbname=d") == "PostgreSQL at the local socket:5432/d"


def test_one_line_of_an_error_without_words() -> None:
    assert one_line(psycopg.OperationalError()) == "OperationalError"
    assert one_line(psycopg.OperationalError("a\n  b")) == "a b"


def test_one_line_of_a_servers_error_has_no_row(database: Database) -> None:
    with connect(database.dsn, name="test") as connection:
        connection.execute("CREATE TABLE public.rows (id text PRIMARY KEY)")
        connection.execute("INSERT INTO public.rows VALUES ('value-of-a-row')")
        with pytest.raises(psycopg.errors.UniqueViolation, match="value-of-a-row") as caught:
            connection.execute("INSERT INTO public.rows VALUES ('value-of-a-row')")
    assert one_line(caught.value) == 'duplicate key value violates unique constraint "rows_pkey"'


OURS = (
    ("SELECT pg_promote(true, %s)", (60,)),
    ("SELECT pg_copy_logical_replication_slot(%s, %s)", ("a", "b")),
    ("SELECT now() - make_interval(secs => %s)", (15,)),
    ("SELECT to_timestamp(1234 / 1000.0)", ()),
    ("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", ("x",)),
    ("SELECT 1 WHERE %s::text = 'a'", ("a",)),
    ("SELECT count(*) FROM pg_class", ()),
)
"""Statements of headrace's own that call functions by an implicit cast, or an operator, or read the catalog."""


@pytest.fixture
def planted(database: Database) -> psycopg.Connection:
    """A connection to a database in whose schema `public` functions, an operator and a table lie in wait."""
    connection = database.connect()
    connection.execute("CREATE TABLE public.ran (what text)")
    for signature, result in (
        ("pg_promote(boolean, smallint)", "boolean"),
        ("pg_copy_logical_replication_slot(text, text)", "text"),
        ("make_interval(years int DEFAULT 0, months int DEFAULT 0, weeks int DEFAULT 0, days int DEFAULT 0,"
         " hours int DEFAULT 0, mins int DEFAULT 0, secs smallint DEFAULT 0)", "interval"),
        ("to_timestamp(numeric)", "timestamptz"),
        ("hashtextextended(text, integer)", "bigint"),
        ("same(text, text)", "boolean"),
        ("size(oid)", "bigint"),
    ):  # fmt: skip
        connection.execute(
            f"CREATE FUNCTION public.{signature} RETURNS {result} LANGUAGE plpgsql AS $$ BEGIN"
            f" INSERT INTO public.ran VALUES ('{signature.partition('(')[0]}'); RETURN NULL; END $$"
        )
    connection.execute("CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = public.same)")
    connection.execute("CREATE VIEW public.pg_class AS SELECT public.size(0::oid)")
    connection.execute(
        f'ALTER DATABASE "{database.name}" SET search_path = public, pg_catalog'  # the widest that a role can have
    )
    return connection


@pytest.mark.parametrize("options", [None, "-c search_path=public,pg_catalog"])
def test_session_runs_no_function_operator_or_view_planted_in_public(
    database: Database, planted: psycopg.Connection, options: str | None
) -> None:
    dsn = make_conninfo(database.dsn, **({} if options is None else {"options": options}))
    with connect(dsn, name="test") as ours:
        for query, values in OURS:
            with contextlib.suppress(psycopg.Error):
                ours.execute(query, values)
        # A temporary object is the session's own to make, and comes last all the same.
        ours.execute("CREATE TEMPORARY TABLE pg_type (oid int)")
        assert ours.execute("SELECT count(*) > 0 FROM pg_type").fetchone() == (True,)
    assert planted.execute("SELECT what FROM public.ran").fetchall() == []


HARMFUL = {
    "search_path": "public",
    "row_security": "on",
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
    "lock_timeout": "10ms",
    "idle_session_timeout": "1s",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "extra_float_digits": "-15",
    "standard_conforming_strings": "off",
    "array_nulls": "off",
    "quote_all_identifiers": "on",
    "transform_null_equals": "on",
    "client_min_messages": "error",
}
PINNED = {
    "search_path": "pg_catalog, pg_temp",
    "row_security": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    "lock_timeout": "0",
    "idle_session_timeout": "0",
    "DateStyle": "ISO, DMY",
    "IntervalStyle": "postgres",
    "extra_float_digits": "3",
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    "quote_all_identifiers": "off",
    "transform_null_equals": "off",
    "client_min_messages": "warning",
}


@pytest.mark.parametrize("autocommit", [True, False])
def test_session_settings_override_those_of_the_role(database: Database, autocommit: bool) -> None:
    administrator = database.connect()
    for name, value in HARMFUL.items():
        administrator.execute(f'ALTER DATABASE "{database.name}" SET {name} = {value if "," in value else repr(value)}')
    administrator.execute(f"ALTER DATABASE \"{database.name}\" SET statement_timeout = '7s'")
    with connect(database.dsn, name="test", autocommit=autocommit) as ours:
        assert ours.info.transaction_status is psycopg.pq.TransactionStatus.IDLE
        # A guard that an administrator gave the role stays: what counts too long has to end.
        assert ours.execute("SHOW statement_timeout").fetchone() == ("7s",)
        found = {name: ours.execute(f"SHOW {name}").fetchone() for name in PINNED}
        assert found == {name: (value,) for name, value in PINNED.items()}
        assert ours.execute("SHOW transaction_isolation").fetchone() == ("read committed",)


def test_row_security_is_refused_by_name(database: Database, stack: Stack) -> None:
    administrator = database.connect()
    administrator.execute(
        "CREATE TABLE public.tenants (id int); INSERT INTO public.tenants SELECT generate_series(1, 300);"
        " ALTER TABLE public.tenants ENABLE ROW LEVEL SECURITY;"
        f" CREATE ROLE {database.name}_role LOGIN PASSWORD 'x'; GRANT SELECT ON public.tenants TO {database.name}_role;"
        f" CREATE POLICY few ON public.tenants TO {database.name}_role USING (id <= 100)"
    )
    dsn = make_conninfo(database.dsn, user=f"{database.name}_role", password="x")
    try:
        with pytest.raises(PreflightFailed) as refused, translated(dsn), connect(dsn, name="test") as ours:
            ours.execute("SELECT count(*) FROM public.tenants")
        assert 'row-level security policy for table "tenants"' in str(refused.value)
        assert "BYPASSRLS" in str(refused.value)
        with pytest.raises(PreflightFailed, match=r"permission denied .* `headrace init --sql`"), translated(dsn):
            with connect(dsn, name="test") as ours:
                ours.execute("CREATE TABLE public.other (id int)")
    finally:
        administrator.execute(f"DROP OWNED BY {database.name}_role; DROP ROLE {database.name}_role")


def test_all_settings_are_sent_in_one_message(database: Database, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with database.connect() as ours, trace.open("w+") as told:
        ours.pgconn.trace(told.fileno())
        ours.execute(pinned(ours.info.server_version, reading=True))
        ours.pgconn.untrace()
    sent = [line for line in trace.read_text().splitlines() if "\tF\t" in line]
    assert len(sent) == 1
    assert "\tQuery\t" in sent[0]


@pytest.mark.parametrize("timeout", ["statement_timeout", "transaction_timeout"])
def test_session_that_a_timeout_of_the_role_ends_at_its_start_is_retryable(
    database: Database, monkeypatch: pytest.MonkeyPatch, timeout: str
) -> None:
    with database.connect() as connection:
        connection.execute(f"ALTER DATABASE {database.name} SET {timeout} = '100ms'".encode())
    monkeypatch.setattr("infra.postgres.connect.pinned", pinned_slowly)
    with pytest.raises(DatabaseUnavailable, match=r"too slow to start a session: .* due to"):
        connect(database.dsn, name="test", reading=True)


def test_timeouts_of_the_role_stay_except_for_reading_sessions(database: Database) -> None:
    administrator = database.connect()
    guards = {"statement_timeout": "7s", "idle_in_transaction_session_timeout": "8s"}
    if administrator.info.server_version >= 170_000:
        guards["transaction_timeout"] = "9s"
    for name, value in guards.items():
        administrator.execute(f'ALTER DATABASE "{database.name}" SET {name} = {value!r}')
    with connect(database.dsn, name="test") as ours:
        assert {name: ours.execute(f"SHOW {name}").fetchone() for name in guards} == {
            name: (value,) for name, value in guards.items()
        }
    with connect(database.dsn, name="test", reading=True) as reading:
        assert {reading.execute(f"SHOW {name}").fetchone() for name in guards} == {("0",)}

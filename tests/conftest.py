"""Real servers for the tests: one stack per session, one database and one topic prefix per test."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import hypothesis
import psycopg
import pytest
import structlog

from consumers.testing.waiting import until
from infra.service import log
from infra.stack import PostgresServer, Stack, container_stack, embedded_stack
from infra.stack.postgresql.databases import DatabaseServer
from tests.shells import Shell

# A shell that starts the tests in the background leaves SIGINT ignored, and every process of theirs would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes is the machine's doing, and a run that fails has to fail again. `make fuzz` draws others.
hypothesis.settings.register_profile(
    "tests",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tests")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests whose fixtures need the running servers, before `-m` selects by marks."""
    for item in items:
        if isinstance(item, pytest.Function) and "stack" in item.fixturenames:
            item.add_marker(pytest.mark.stack)


@pytest.fixture(autouse=True)
def _log_is_the_tests_own() -> Iterator[None]:
    """Forget where a command that ran in this process sent it: to a standard error that pytest has closed by now."""
    yield
    log._WANTED.apply()  # what a command configured and did not use
    structlog.reset_defaults()


Build = Callable[[psycopg.Connection], None]


@dataclass(frozen=True)
class Database:
    """A database of the test's own; `connect` opens autocommit connections, closed at the end of the test."""

    name: str
    dsn: str
    _opened: contextlib.ExitStack

    def __repr__(self) -> str:
        return f"Database({self.name})"

    def connect(self, *, autocommit: bool = True) -> psycopg.Connection:
        return self._opened.enter_context(
            contextlib.closing(psycopg.connect(self.dsn, autocommit=autocommit, connect_timeout=120))
        )


def start_stack() -> Stack:
    """Start the kind of stack that HEADRACE_TEST_STACK names: embedded (the default) or containers."""
    # Tests kill processes and never the machine, and creating and dropping a database alone syncs a dozen times.
    kinds: dict[str, Callable[[], Stack]] = {
        "embedded": partial(embedded_stack, fsync=False),
        "containers": container_stack,
    }
    return kinds[os.environ.get("HEADRACE_TEST_STACK", "embedded")]()


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """The running servers. A test that stops one starts it again; one that crashes them makes its own stack."""
    with start_stack() as running:
        yield running


@pytest.fixture(scope="session")
def bootstrap_servers(stack: Stack) -> str:
    return stack.endpoints.bootstrap_servers


@pytest.fixture
def prefix() -> str:
    """A topic prefix of the test's own, such as t3f9a02."""
    return f"t{secrets.token_hex(3)}"


@contextlib.contextmanager
def new_database(postgres: PostgresServer, template: str | None = None) -> Iterator[Database]:
    name = f"test_{secrets.token_hex(4)}"
    dsn = postgres.create_database(name, template)
    try:
        with contextlib.ExitStack() as opened:
            yield Database(name, dsn, opened)
    finally:
        postgres.drop_database(name)


@contextlib.contextmanager
def encoded_database(postgres: DatabaseServer, encoding: str) -> Iterator[Database]:
    """A fresh, empty database with an encoding, sorted by byte values; dropped after the `with`."""
    name = f"test_{secrets.token_hex(4)}"
    with postgres.connect() as connection:
        connection.execute(
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}'"
            " LOCALE_PROVIDER libc LC_COLLATE 'C' LC_CTYPE 'C'".encode()
        )
    try:
        with contextlib.ExitStack() as opened:
            yield Database(name, postgres.dsn(name), opened)
    finally:
        postgres.drop_database(name)


@pytest.fixture
def database(stack: Stack) -> Iterator[Database]:
    """A fresh, empty database, dropped with its replication slots after the test."""
    with new_database(stack.postgres) as fresh:
        yield fresh


@pytest.fixture
def new_databases(stack: Stack) -> Iterator[Callable[[str | None], Database]]:
    """A function that makes as many fresh databases as a test needs, each empty (None) or the copy of a template."""
    with contextlib.ExitStack() as made:

        def make(template: str | None) -> Database:
            return made.enter_context(new_database(stack.postgres, template))

        yield make


@pytest.fixture(scope="session")
def template_database(stack: Stack) -> Iterator[Callable[[str, Build], str]]:
    """A function `(name, build)` that makes a template once a session, and returns the template's name.

    `build` gets an autocommit connection to it. Copy it with `new_databases(template)`.
    """
    templates: dict[str, str] = {}

    def template(name: str, build: Build) -> str:
        if name not in templates:
            made = f"template_{name}_{secrets.token_hex(3)}"
            with psycopg.connect(stack.postgres.create_database(made), autocommit=True) as connection:
                build(connection)
            templates[name] = made
        return templates[name]

    yield template
    for made in templates.values():
        stack.postgres.drop_database(made)


@pytest.fixture
def standby_that_never_answers(stack: Stack) -> Iterator[None]:
    """Commits with synchronous_commit = on wait for ever, once their log is flushed; all others don't."""
    with stack.postgres.connect() as connection:
        connection.execute("ALTER SYSTEM SET synchronous_commit = 'local'")
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        connection.execute("SELECT pg_reload_conf()")
        _until_set(connection, "nobody")
        yield
        connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
        connection.execute("ALTER SYSTEM RESET synchronous_commit")
        connection.execute("SELECT pg_reload_conf()")
        _until_set(connection, "")


def _until_set(connection: psycopg.Connection, names: str) -> None:
    until(
        lambda: connection.execute("SHOW synchronous_standby_names").fetchone() == (names,),
        "the server has the setting",
    )


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """The command line, in a directory of its own."""
    return Shell(tmp_path)

"""The application of a round: writes its tables, alters them, and records what its database accepted."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any, Final

import psycopg
from psycopg.conninfo import make_conninfo

from infra.state.snapshot_requests import SnapshotRequest, send_request
from tests.fuzz.acts import Act, Ending
from tests.fuzz.values import identifier
from tests.fuzz.world import OWNER, Broken

_OUR_DOING: Final = re.compile(r"publishes|replica identity", re.IGNORECASE)
"""In the error of an application's statement: it would have worked without headrace's publication."""

_WRITES: Final = ("write", "rows", "large transaction")
"""Acts in which a refused statement does not undo the others."""

_EXPECTED: Final = {
    "statement_timeout": "0",
    "lock_timeout": "20s",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read\\ committed",
    "default_transaction_deferrable": "off",
    "session_replication_role": "origin",
    "search_path": "public,ext",
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "array_nulls": "on",
    "standard_conforming_strings": "on",
    "transform_null_equals": "off",
    "xmloption": "content",
}
"""The settings of role and database are for headrace; the application uses the defaults that it expects."""


class Application:
    """A connection to the round's database. `happened` are the acts that the database accepted."""

    def __init__(self, dsn: str, name: str, *, owned: bool) -> None:
        """With `owned`, tables are created and altered by the database owner's role, else by a superuser."""
        options = " ".join(f"-c {setting}={value}" for setting, value in _EXPECTED.items())
        self.dsn = make_conninfo(dsn, options=options, client_encoding="UTF8")
        self._connection: psycopg.Connection[Any] = psycopg.connect(self.dsn, autocommit=True)
        if self._connection.info.server_version >= 170_000:
            self._connection.execute("SET transaction_timeout = 0")
        self._name = name
        self._owned = owned
        self._prepared: list[str] = []
        self.happened: list[Act] = []
        self.failed: list[str] = []
        """Statements that the database refused, as it may."""

    def close(self) -> None:
        with contextlib.suppress(psycopg.Error):
            self._connection.execute("ROLLBACK")  # of a transaction that failed halfway
            self.finish_prepared()
        self._connection.close()

    def ask(self, query: str, *values: object) -> Any:
        """Return the first column of the first row, as a superuser; None if there is no row."""
        self.become(application=True)
        row = self._connection.execute(query.encode(), values).fetchone()
        return None if row is None else row[0]

    def request(self, table: str) -> None:
        """Request a re-snapshot of a table, if requests are possible."""
        with self.tolerated("a request"):
            self.become(application=True)
            send_request(self._connection, SnapshotRequest(table=table))

    def configure(self, database: tuple[str, ...], role: tuple[str, ...]) -> None:
        """Apply settings to the database, and to the producer's role in it."""
        self.become(application=True)
        named, who = f'DATABASE "{self._connection.info.dbname}"', OWNER if self._owned else "CURRENT_USER"
        for setting in database:
            self._set(f"ALTER {named} SET {setting}")
        for setting in role:
            self._set(f"ALTER ROLE {who} IN {named} SET {setting}")

    def _set(self, statement: str) -> None:
        with contextlib.suppress(psycopg.errors.FeatureNotSupported):  # an encoding without a conversion to LATIN1
            self._connection.execute(statement.encode())

    def require_writable(self, table: tuple[str, str]) -> None:
        """Raise Broken if the publication keeps the application from writing a table."""
        self.become(application=True)
        query = f"DELETE FROM {identifier(table[0])}.{identifier(table[1])}"
        with contextlib.suppress(psycopg.errors.UndefinedTable), self._connection.transaction(force_rollback=True):
            try:
                self._connection.execute(query.encode())
            except psycopg.errors.ObjectNotInPrerequisiteState as error:
                raise Broken(f"table {'.'.join(table)} cannot be written: {error}") from error

    def become(self, *, application: bool) -> None:
        """Switch to the application's role (a superuser), or to the tables' owner, the producer's role."""
        if self._connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            role = "postgres" if application or not self._owned else OWNER
            self._connection.execute(f"SET ROLE {role}".encode())

    def write(self, act: Act) -> None:
        """Execute the transaction as far as the database accepts it; a refused transaction did not happen."""
        if act.what not in _WRITES:
            self.finish_prepared()  # an ALTER TABLE would wait for them
        self.become(application=act.what in _WRITES)
        if act.ending is Ending.ALONE:
            # One after another, independently of each other.
            happened = max(list(map(self._statement, act.statements)))
        else:
            self._connection.execute("BEGIN")
            # A refused row leaves the rest of its transaction; a change happens as a whole or not at all.
            if act.what in _WRITES:
                for statement in act.statements:
                    self._row(statement)
                whole = True
            else:
                whole = all(map(self._statement, act.statements))
            happened = self._end(act.ending if whole else Ending.ROLLBACK)
        if happened:
            self.happened.append(act)

    def _end(self, ending: Ending) -> bool:
        """End the transaction; return whether its effects persist or will."""
        if ending is Ending.PREPARE:
            gid = f"{self._name}-{len(self.happened)}"
            with self.tolerated(ending.value):
                self._connection.execute(f"PREPARE TRANSACTION '{gid}'".encode())
                self._prepared.append(gid)
                # Its locks stay until this session itself commits it.
                self._connection.execute("SET lock_timeout = '50ms'")
                return True
        elif ending is Ending.COMMIT:
            with self.tolerated(ending.value):
                self._connection.execute("COMMIT")
                return True
        if self._connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            self._connection.execute("ROLLBACK")
        return False

    def finish_prepared(self) -> None:
        while self._prepared:
            self.become(application=True)
            self._connection.execute(f"COMMIT PREPARED '{self._prepared.pop()}'".encode())
            self._connection.execute("RESET lock_timeout")

    def _row(self, statement: str) -> bool:
        if statement.startswith(("SAVEPOINT", "ROLLBACK")):
            self._connection.execute(statement.encode())
            return True
        self._connection.execute("SAVEPOINT statement")
        if self._statement(statement):
            return True
        self._connection.execute("ROLLBACK TO statement")
        return False

    def alter(self, statement: str) -> bool:
        self.finish_prepared()
        self.become(application=False)
        return self._statement(statement)

    def _statement(self, statement: str) -> bool:
        if self._prepared and statement.startswith("TRUNCATE"):
            return False  # it would wait for the prepared transaction
        with self.tolerated(statement):
            self._connection.execute(statement.encode())
            return True
        return False

    @contextlib.contextmanager
    def tolerated(self, statement: str) -> Iterator[None]:
        """Record what the database refuses; raise Broken if headrace is the cause."""
        try:
            yield
        except psycopg.Error as error:
            message = str(error).splitlines()[0]
            self.failed.append(f"{message} ({statement[:80]})")
            writes = statement.startswith(("INSERT", "UPDATE", "DELETE", "TRUNCATE"))
            if writes and _OUR_DOING.search(f"{error}") and not self._made_unwritable(statement):
                raise Broken(f"a write of the application failed: {error} ({statement[:200]})") from error

    def _made_unwritable(self, statement: str) -> bool:
        """Whether the application removed what PostgreSQL needs to publish the table."""
        return any(act.unwritable and act.table and _prefix(act.table) in statement for act in self.happened)


def _prefix(table: str) -> str:
    """Return the start of the table's name, and of its first partitions' names, in a statement (no closing quote)."""
    schema, _, name = table.partition(".")
    return f"{identifier(schema)}.{identifier(name)[:-1]}"

"""The case of a migration that reads and writes tables: three or four pieces of SQL, and all else by them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Final

import psycopg

from consumers.contract.decisions import Decision
from consumers.contract.migration import Migration
from consumers.testing.case import Case, Rows
from consumers.testing.row_feed import RowFeed
from infra.settings.model import MigrationSettings, Settings
from schemas.events import ChangeEvent, Op, Row, Source
from schemas.positions import Lsn, Position

DATABASE: Final = "here"
"""The name of the test's only database."""
_SESSION: Final = "SET TIME ZONE 'UTC'; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres'; SET bytea_output = 'hex'"
"""What a producer's session sets: the text of values in events depends on it."""
_LOG: Final = """
CREATE SCHEMA headrace_test;
CREATE TABLE headrace_test.writes (application text);
CREATE FUNCTION headrace_test.log_write() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO headrace_test.writes VALUES (pg_catalog.current_setting('application_name'));
        RETURN NULL;
    END $$;
"""


class WrongCase(AssertionError):
    """Its SQL does not show what the migration is for."""


class TableCase(Case):
    """Rows of the migration's tables before and after it.

    Names in the SQL need their schema, as in a migration. Each table has a primary key.
    """

    migration: ClassVar[type[Migration]]
    options: ClassVar[Mapping[str, object]] = {}
    """The migration's section in the settings."""

    create_sql: ClassVar[str]
    """Creates its tables, empty, and whatever else it needs."""

    insert_sql: ClassVar[str]
    """Inserts rows: some that the migration should change, some that it should not."""

    effect_sql: ClassVar[str]
    """Does to all rows at once what the migration should do, independently of how it does it."""

    keep_sql: ClassVar[str] = ""
    """Changes the rows that effect_sql deletes, as an application would, so that they have to stay.

    Needed if it deletes any: an event may ask for the delete of a row that is another one by now. If every row is to be
    deleted, whatever is in it, this is effect_sql.
    """

    @classmethod
    def decision(cls, row: Row | None, *, op: Op = Op.UPDATE, table: str | None = None) -> Decision:
        """Return the migration's decision for an event with this new row: column → value; None for a delete."""
        schema, _, name = (table or cls.migration.tables[0]).partition(".")
        position = Position(Lsn(9), 0)
        source = Source(DATABASE, cls.migration.gitlab_schema, schema, name, position, 7, 1, op is Op.READ)
        event = ChangeEvent(Op.DELETE if row is None else op, source, 2, None, row)
        return cls.migration.configure(MigrationSettings.model_validate(cls.options)).decide(event)

    def __init__(self, settings: Settings, connection: psycopg.Connection[Any]) -> None:
        """Create the tables and their topics. Raises NoPrimaryKey."""
        kind = self.migration
        self._connection = connection
        self._wanted: Rows = {}
        connection.execute(_SESSION)
        self._execute("create_sql")
        connection.execute(_LOG)
        self._read = [RowFeed(settings, connection, kind.gitlab_schema, table, DATABASE) for table in kind.tables]
        others = [table for table in kind.writes if table not in kind.tables]
        self._shown = [
            *self._read,
            *(RowFeed(settings, connection, kind.gitlab_schema, table, DATABASE) for table in others),
        ]
        for feed in self._shown:
            name = feed.name.as_string(connection)
            connection.execute(
                f"CREATE TRIGGER headrace_test AFTER INSERT OR UPDATE OR DELETE ON {name}"
                " FOR EACH ROW EXECUTE FUNCTION headrace_test.log_write()".encode()
            )

    @property
    def keys(self) -> Collection[str]:
        """See Case.keys."""
        return {name for feed in self._read for name in feed.key}

    def insert(self) -> None:
        """See Case.insert. Raises WrongCase if the migration would have nothing to do."""
        self._execute("insert_sql")
        for feed in self._read:
            feed.take()
        with self._connection.transaction(force_rollback=True):
            before = self.rows()
            self._execute("effect_sql")
            after = self.rows()
        deleted = dict.fromkeys(before.keys() - after.keys())
        self._wanted = {key: row for key, row in after.items() if before.get(key) != row} | deleted
        if not self._wanted:
            raise WrongCase("effect_sql changes none of the rows of insert_sql; insert some that it changes")
        if deleted:
            self._require_kept()

    def publish(self) -> None:
        """See Case.publish."""
        for feed in self._read:
            feed.publish()

    def publish_as(self, xid: int) -> bool:
        """See Case.publish_as."""
        for feed in self._read:
            feed.xid = xid
        return True

    def wanted(self) -> Rows:
        """See Case.wanted."""
        return self._wanted

    def rows(self) -> Rows:
        """See Case.rows."""
        return {(number, key): row for number, feed in enumerate(self._shown) for key, row in feed.rows().items()}

    def writes(self) -> int:
        """See Case.writes."""
        query = "SELECT count(*) FROM headrace_test.writes WHERE application LIKE 'headrace consume%'"
        row = self._connection.execute(query).fetchone()
        assert row is not None
        return int(row[0])

    def settle_elsewhere(self) -> None:
        """See Case.settle_elsewhere."""
        self._execute("keep_sql")
        self._execute("effect_sql")

    def recreate(self) -> None:
        """See Case.recreate."""
        for feed in reversed(self._shown):
            self._connection.execute(b"DELETE FROM " + feed.name.as_bytes(self._connection))
        for feed in self._read:
            feed.publish_deleted()
        self.insert()
        self.publish()

    def _execute(self, piece: str) -> None:
        """Run a piece of the case's SQL; an error names it, since the traceback has headrace's lines only."""
        try:
            self._connection.execute(getattr(self, piece).encode())
        except psycopg.Error as error:
            place = f"{piece} of {type(self).__module__}.{type(self).__qualname__}"
            raise WrongCase(f"{place} fails: {error}; does create_sql have all that it uses?") from error

    def _require_kept(self) -> None:
        if not self.keep_sql:
            raise WrongCase("effect_sql deletes rows; add keep_sql, which changes them so that they have to stay")
        with self._connection.transaction(force_rollback=True):
            self._execute("keep_sql")
            kept = self.rows()
            self._execute("effect_sql")
            if kept.keys() - self.rows().keys():
                raise WrongCase("effect_sql deletes rows after keep_sql; change them so that they have to stay")

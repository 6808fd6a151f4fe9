"""A case of three pieces of SQL: it suits a sound migration of any table, and a mistaken migration breaks a promise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from consumers.testing.promises import PROMISES
from consumers.testing.row_feed import NoPrimaryKey
from consumers.testing.table_case import WrongCase
from consumers.testing.world import World, world_of
from headrace import UNCHANGED, Change, ChangeEvent, Cursor, Decision, Migration, Options, Skip, TableCase
from tests.conftest import Database

pytestmark = pytest.mark.stack


class Lowers(Migration):
    """Lowercase what is in `email`."""

    name = "lowers"
    gitlab_schema = "own"
    tables = ("public.Odd-users",)
    columns = ("key", "email")

    def decide(self, event: ChangeEvent) -> Decision:
        return Skip("deleted") if event.after is None else Change(event.after["key"])

    def apply(self, cursor: Cursor, changes: Sequence[Change]) -> int:
        cursor.execute(
            'UPDATE public."Odd-users" SET email = lower(email) WHERE key = ANY(%s::text[]) AND email <> lower(email)',
            ([change.key for change in changes],),
        )
        return cursor.rowcount

    def remaining(self, cursor: Cursor) -> int:
        row = cursor.execute('SELECT count(*) FROM public."Odd-users" WHERE email <> lower(email)').fetchone()
        assert row is not None
        return int(row[0])


class Case(TableCase):
    """A key of text, values of many types, and a column that no event has."""

    migration = Lowers
    create_sql = """
        CREATE TABLE public."Odd-users" (
            key text PRIMARY KEY, dropped int, email text, flag boolean, at timestamptz, span interval, bytes bytea,
            amount numeric(9, 2), list int[], upper_email text GENERATED ALWAYS AS (upper(email)) STORED
        );
        ALTER TABLE public."Odd-users" DROP COLUMN dropped;
    """
    insert_sql = """
        INSERT INTO public."Odd-users"
        SELECT 'k' || n, CASE n % 3 WHEN 0 THEN 'Upper ' || n WHEN 1 THEN 'lower ' || n END, n % 2 = 0,
               '2024-05-06 07:08:09+02', '1 day 2 hours', '\\xff00', n / 3.0, ARRAY[n, NULL]
          FROM generate_series(1, 30) n
    """
    effect_sql = """UPDATE public."Odd-users" SET email = lower(email) WHERE email <> lower(email)"""


class Unguarded(Lowers):
    """Writes rows that are up to date."""

    def apply(self, cursor: Cursor, changes: Sequence[Change]) -> int:
        cursor.execute(
            'UPDATE public."Odd-users" SET email = lower(email) WHERE key = ANY(%s::text[])',
            ([change.key for change in changes],),
        )
        return cursor.rowcount


class DecidesByTexts(Lowers):
    """Takes a value that an event leaves out for one that needs no change."""

    def decide(self, event: ChangeEvent) -> Decision:
        if event.after is not None and event.after["email"] is UNCHANGED:
            return Skip("up to date")
        return super().decide(event)


class ChangesDeleted(Lowers):
    """Wants to change a row that is gone."""

    def decide(self, event: ChangeEvent) -> Decision:
        row = event.after or event.before
        return Skip("truncated") if row is None else Change(row["key"])


class ChangesOthers(Lowers):
    """Changes rows that have no upper case, too."""

    def apply(self, cursor: Cursor, changes: Sequence[Change]) -> int:
        applied = super().apply(cursor, changes)
        cursor.execute("""UPDATE public."Odd-users" SET email = 'none' WHERE email IS NULL""")
        return applied


class CountsWrong(Lowers):
    """Never counts zero."""

    def remaining(self, cursor: Cursor) -> int:
        return super().remaining(cursor) + 1


class Commits(Lowers):
    """Ends the transaction that it was called in."""

    def apply(self, cursor: Cursor, changes: Sequence[Change]) -> int:
        applied = super().apply(cursor, changes)
        cursor.execute("COMMIT")
        return applied


BROKEN: Sequence[tuple[type[Migration], str]] = (
    (Unguarded, "migration_run_twice_is_idempotent"),
    (Unguarded, "stale_event_changes_nothing"),
    (Unguarded, "replay_from_the_start_changes_no_row_already_up_to_date"),
    (DecidesByTexts, "values_left_out_of_events_do_not_affect_the_result"),
    (ChangesDeleted, "delete_after_the_rows_new_key_does_not_affect_it"),
    (ChangesOthers, "migration_changes_only_the_intended_rows"),
    (CountsWrong, "migration_changes_only_the_intended_rows"),
    (Commits, "crash_after_the_write_is_resumed"),
)


class DeletesExpired(Migration):
    """Delete expired sessions, and count the uses of the others from zero."""

    name = "deletes_expired"
    gitlab_schema = "own"
    tables = ("public.sessions",)
    columns = ("id", "expired", "uses")

    def decide(self, event: ChangeEvent) -> Decision:
        row = event.after
        if row is None:
            return Skip("deleted")
        return Change(row["id"]) if row["expired"] or row["uses"] else Skip("in use")

    def apply(self, cursor: Cursor, changes: Sequence[Change]) -> int:
        keys = [change.key for change in changes]
        cursor.execute("DELETE FROM public.sessions WHERE id = ANY(%s::bigint[]) AND expired", (keys,))
        deleted = cursor.rowcount
        cursor.execute("UPDATE public.sessions SET uses = 0 WHERE id = ANY(%s::bigint[]) AND uses <> 0", (keys,))
        return deleted + cursor.rowcount

    def remaining(self, cursor: Cursor) -> int:
        row = cursor.execute("SELECT count(*) FROM public.sessions WHERE expired OR uses <> 0").fetchone()
        assert row is not None
        return int(row[0])


class DeletingCase(TableCase):
    """Rows to delete, to change and to leave; the first kind may be in use again."""

    migration = DeletesExpired
    create_sql = "CREATE TABLE public.sessions (id bigint PRIMARY KEY, expired boolean NOT NULL, uses int NOT NULL)"
    insert_sql = "INSERT INTO public.sessions SELECT n, n % 3 = 0, n % 2 FROM generate_series(1, 30) n"
    effect_sql = """
        DELETE FROM public.sessions WHERE expired;
        UPDATE public.sessions SET uses = 0 WHERE uses <> 0;
    """
    keep_sql = "UPDATE public.sessions SET expired = false"


class DeletesByTheEvent(DeletesExpired):
    """Deletes a row that an event said was expired, whatever it is now."""

    def apply(self, cursor: Cursor, changes: Sequence[Change]) -> int:
        expired = [change.key for change in changes if change.values["expired"]]
        cursor.execute("DELETE FROM public.sessions WHERE id = ANY(%s::bigint[])", (expired,))
        return cursor.rowcount + super().apply(cursor, changes)

    def decide(self, event: ChangeEvent) -> Decision:
        decision = super().decide(event)
        if isinstance(decision, Change) and event.after is not None:
            return decision._replace(values={"expired": event.after["expired"]})
        return decision


class DeletesTooMany(DeletesExpired):
    """Deletes the rows that it should only change."""

    def apply(self, cursor: Cursor, changes: Sequence[Change]) -> int:
        keys = [change.key for change in changes]
        cursor.execute(
            "DELETE FROM public.sessions WHERE id = ANY(%s::bigint[]) AND (expired OR uses <> 0)",
            (keys,),
        )
        return cursor.rowcount


class DeletesNone(DeletesExpired):
    """Reports deletes that it does not do."""

    def apply(self, cursor: Cursor, changes: Sequence[Change]) -> int:
        super().apply(cursor, [change for change in changes if change.key != 3])
        return len({change.key for change in changes})

    def remaining(self, cursor: Cursor) -> int:
        left = super().remaining(cursor)
        return left if left > 1 else 0


DELETING_WRONGLY: Sequence[tuple[type[Migration], str]] = (
    (DeletesByTheEvent, "stale_event_changes_nothing"),
    (DeletesTooMany, "migration_changes_only_the_intended_rows"),
    (DeletesNone, "migration_changes_only_the_intended_rows"),
    (DeletesNone, "crash_after_the_write_is_resumed"),
)


@pytest.fixture
def made(bootstrap_servers: str, prefix: str, database: Database, tmp_path: Path) -> _Make:
    return _Make(bootstrap_servers, prefix, database, tmp_path)


class _Make:
    def __init__(self, bootstrap_servers: str, prefix: str, database: Database, directory: Path) -> None:
        self._place = bootstrap_servers, prefix, database.connect(), database.dsn, directory

    def world(self, case: type[TableCase], kind: type[Migration] = Lowers) -> World:
        return world_of(kind, case, *self._place, case.options)


@pytest.mark.parametrize("promise", PROMISES)
def test_sound_migration_keeps_every_promise(made: _Make, promise: str) -> None:
    PROMISES[promise](made.world(Case))


@pytest.mark.parametrize(("kind", "promise"), BROKEN)
def test_mistaken_migration_breaks_a_promise(made: _Make, kind: type[Migration], promise: str) -> None:
    with pytest.raises(Exception) as broken:  # noqa: PT011 - the contract's own errors come before the assertions
        PROMISES[promise](made.world(Case, kind))
    assert type(broken.value).__name__ in ("AssertionError", "ContractBroken")


def test_case_that_shows_nothing_is_refused(made: _Make) -> None:
    nothing = type("Nothing", (Case,), {"effect_sql": ""})
    with pytest.raises(WrongCase, match="effect_sql changes none of the rows of insert_sql"):
        made.world(nothing).case.insert()


def test_failing_sql_of_a_case_is_named(made: _Make) -> None:
    failing = type("Failing", (Case,), {"effect_sql": "UPDATE public.nothing SET name = ''"})
    with pytest.raises(WrongCase, match=r'effect_sql of \S+Failing fails: relation "public.nothing"'):
        made.world(failing).case.insert()


@pytest.mark.long
@pytest.mark.parametrize("promise", PROMISES)
def test_sound_migration_that_deletes_keeps_every_promise(made: _Make, promise: str) -> None:
    PROMISES[promise](made.world(DeletingCase, DeletesExpired))


@pytest.mark.parametrize(("kind", "promise"), DELETING_WRONGLY)
def test_mistaken_migration_that_deletes_breaks_a_promise(made: _Make, kind: type[Migration], promise: str) -> None:
    with pytest.raises(AssertionError):
        PROMISES[promise](made.world(DeletingCase, kind))


@pytest.mark.parametrize(
    ("keep_sql", "message"),
    [
        ("", "effect_sql deletes rows; add keep_sql"),
        ("UPDATE public.sessions SET expired = true", "effect_sql deletes rows after keep_sql"),
    ],
    ids=["none", "keeps none"],
)
def test_case_whose_effect_deletes_without_a_way_to_keep_is_refused(made: _Make, keep_sql: str, message: str) -> None:
    deleting = type("Deleting", (DeletingCase,), {"keep_sql": keep_sql})
    with pytest.raises(WrongCase, match=message):
        made.world(deleting, DeletesExpired).case.insert()


def test_table_without_a_primary_key_is_refused(made: _Make) -> None:
    keyless = type("Keyless", (Case,), {"create_sql": Case.create_sql.replace("PRIMARY KEY", "NOT NULL")})
    with pytest.raises(NoPrimaryKey, match="its CREATE TABLE has to declare one"):
        made.world(keyless)


class WithOptions(Lowers):
    """Has an option, and takes it."""

    class Own(Options):
        """One option."""

        word: str = "deleted"

    options_type = Own
    options: Own
    name: ClassVar[str] = "with_options"

    def decide(self, event: ChangeEvent) -> Decision:  # noqa: ARG002 - a contract fixes the names
        return Skip(self.options.word)


def test_decision_is_made_with_the_options_of_the_case() -> None:
    class Own(Case):
        migration = WithOptions
        options: ClassVar[Mapping[str, object]] = {"word": "chosen"}

    assert Own.decision({"key": "a", "email": "A"}) == Skip("chosen")
    assert Case.decision({"key": "a", "email": "A"}) == Change("a")
    assert Case.decision(None) == Skip("deleted")

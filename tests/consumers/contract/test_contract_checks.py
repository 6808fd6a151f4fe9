"""A migration that breaks its contract stops before the commit, with file and line of the author's code."""

# ruff: noqa: ARG002 - a contract fixes the names

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog

from consumers.contract import contract_checks
from consumers.contract.decisions import Skip
from consumers.contract.external import Outside, Pace, WorkStatus
from consumers.dead_letters.given_up import count_given_up, read_given_up, take_up
from consumers.migrations.skip_resets import SkipResets
from consumers.operations.dry_run import dry_run
from consumers.operations.remaining import remaining
from consumers.operations.status import gather
from consumers.runtime.assembly import consumer_of
from infra.settings.model import Settings
from schemas.errors import HeadraceError
from tests.consumers.container_repositories import TOO_MANY_TAGS, Feed, fill, written

pytestmark = pytest.mark.stack

SECRET = "repository-3"
"""A value of a row, which no message may contain."""


def run(settings: Settings, kind: type[SkipResets]) -> None:
    migration = kind.configure(settings.migration("skip_resets"))
    consumer_of(settings, migration, "main", stopping=threading.Event(), until_caught_up=True).run()


class NoCount(SkipResets):
    """Does not return a value."""

    def apply(self, cursor: Any, changes: Any) -> int:
        super().apply(cursor, changes)
        return None  # type: ignore[return-value]


class Negative(SkipResets):
    """Returns the driver's rowcount for an unknown statement."""

    def apply(self, cursor: Any, changes: Any) -> int:
        return super().apply(cursor, changes) - 1_000


class TooMany(SkipResets):
    """Counts twice."""

    def apply(self, cursor: Any, changes: Any) -> int:
        return super().apply(cursor, changes) * 2


class Truth(SkipResets):
    """Returns a boolean, not a number."""

    def apply(self, cursor: Any, changes: Any) -> int:
        return super().apply(cursor, changes) > 0


class DriverCommit(SkipResets):
    """Commits with the driver."""

    def apply(self, cursor: Any, changes: Any) -> int:
        count = super().apply(cursor, changes)
        cursor.connection.commit()
        return count


class PerCent(SkipResets):
    """Has a percent sign next to a parameter."""

    def apply(self, cursor: Any, changes: Any) -> int:
        cursor.execute("UPDATE container_repositories SET name = name WHERE name LIKE '%@%' AND id = %s", (1,))
        return int(cursor.rowcount)


class Parameters(SkipResets):
    """Passes one parameter too many."""

    def apply(self, cursor: Any, changes: Any) -> int:
        cursor.execute("UPDATE container_repositories SET name = name WHERE id = %s", (1, 2))
        return int(cursor.rowcount)


class Swallows(SkipResets):
    """Continues in a transaction that an error has aborted."""

    def apply(self, cursor: Any, changes: Any) -> int:
        try:
            cursor.execute("SELECT 1 / 0")
        except psycopg.Error:
            return len(changes)
        return 0


class OpenCopy(SkipResets):
    """Leaves a COPY open."""

    def apply(self, cursor: Any, changes: Any) -> int:
        self.copy = cursor.copy("COPY public.container_repositories TO STDOUT")
        self.copy.__enter__()
        return 0


class Raises(SkipResets):
    """Fails on an unexpected row."""

    def apply(self, cursor: Any, changes: Any) -> int:
        super().apply(cursor, changes)
        raise ValueError(SECRET)


class Syntax(SkipResets):
    """Has a syntax error in its SQL."""

    def apply(self, cursor: Any, changes: Any) -> int:
        cursor.execute("UPDATE container_repositories SETT name = 'x'")
        return 0


class NoColumn(SkipResets):
    """Names a column that does not exist."""

    def apply(self, cursor: Any, changes: Any) -> int:
        cursor.execute("UPDATE public.container_repositories SET nmae = 'x'")
        return 0


class NoDecision(SkipResets):
    """Returns no decision."""

    def decide(self, event: Any) -> Any:
        return None


class OddReason(SkipResets):
    """Its reason is not a string."""

    def decide(self, event: Any) -> Any:
        return Skip(7)  # type: ignore[arg-type]


class NoKey(SkipResets):
    """Reads an undeclared column."""

    def decide(self, event: Any) -> Any:
        return event.after["nmae"]


class NothingLeft(SkipResets):
    """Does not return a count."""

    def remaining(self, cursor: Any) -> int:
        return None  # type: ignore[return-value]


class CountsByText(SkipResets):
    """Returns the count as a string."""

    def remaining(self, cursor: Any) -> int:
        return "3"  # type: ignore[return-value]


class CountEndsTransaction(SkipResets):
    """Ends its transaction and starts another."""

    def remaining(self, cursor: Any) -> int:
        cursor.execute("COMMIT")
        cursor.execute("BEGIN")
        return 3


class WrongCount(SkipResets):
    """Counts in a table that does not exist."""

    def remaining(self, cursor: Any) -> int:
        cursor.execute("SELECT count(*) FROM container_repositoriez")
        return 0


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        (NoCount, r"apply\(\) returned None, not a number of rows"),
        (Negative, r"apply\(\) returned -\d+, which is not a number of rows"),
        (TooMany, r"apply\(\) returned \d+ for \d+ changes"),
        (Truth, r"apply\(\) returned bool, not a number of rows"),
        (DriverCommit, r"apply\(\) raised ProgrammingError \(Explicit commit\(\) forbidden\)"),
        (PerCent, r"apply\(\) raised ProgrammingError \(only '%s'.*write %% for a percent sign"),
        (Parameters, r"apply\(\) raised ProgrammingError \(the query has 1 placeholders but 2"),
        (Swallows, r"apply\(\) caught a database error and continued.*cursor\.connection\.transaction"),
        (OpenCopy, r"apply\(\) left a COPY or a stream open"),
        (Raises, r"apply\(\) raised ValueError, at "),
        (Syntax, r"42601 SyntaxError.*in apply\(\) at "),
        (NoColumn, r"42703 UndefinedColumn.*in apply\(\) at "),
        (NoDecision, r"decide\(\) returned None, not a Skip, a Change or a DeadLetter"),
        (OddReason, r"decide\(\) returned as the reason of its decision int, not a string"),
        (NoKey, r"decide\(\) raised KeyError for an event of container_repositories"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_broken_contract_is_reported_with_line_and_nothing_is_written(
    kind: type[SkipResets],
    problem: str,
    feed: Feed,
    connection: psycopg.Connection[Any],
    settings: Settings,
    ledger: Callable[[], Mapping[str, Any]],
) -> None:
    rows = dict.fromkeys(range(10), TOO_MANY_TAGS)
    fill(connection, rows)
    feed.snapshot(rows)

    with structlog.testing.capture_logs() as logged, pytest.raises(HeadraceError, match=problem) as raised:
        run(settings, kind)

    assert str(Path(__file__)) + ":" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert written(connection) == []
    assert ledger()["next"] == 0
    assert SECRET not in str(raised.value) + str(logged)


def line_of(text: str) -> int:
    return next(
        number for number, line in enumerate(Path(__file__).read_text().splitlines(), 1) if line.strip() == text
    )


def test_failing_line_is_reported_and_log_has_traceback(
    feed: Feed, connection: psycopg.Connection[Any], settings: Settings
) -> None:
    fill(connection, {1: TOO_MANY_TAGS})
    feed.snapshot({1: TOO_MANY_TAGS})
    with structlog.testing.capture_logs() as logged, pytest.raises(HeadraceError) as raised:
        run(settings, Raises)
    assert f"{__file__}:{line_of('raise ValueError(SECRET)')}" in str(raised.value)
    (logged_error,) = [entry for entry in logged if entry["log_level"] == "error"]
    assert "in apply\n    raise ValueError(SECRET)" in logged_error["exception"]
    assert logged_error["exception"].endswith("ValueError")


SQL_ENDS = {
    "commit": ("COMMIT",),
    "commit and begin": ("COMMIT", "BEGIN"),
    "commit and begin at once": ("COMMIT; BEGIN",),
    "rollback and begin": ("ROLLBACK", "BEGIN"),
    "end and chain": ("COMMIT AND CHAIN",),
}


@pytest.mark.parametrize("statements", SQL_ENDS.values(), ids=SQL_ENDS)
def test_transaction_ended_by_sql_in_apply_is_detected_and_ledger_is_unchanged(
    statements: Sequence[str],
    feed: Feed,
    connection: psycopg.Connection[Any],
    settings: Settings,
    ledger: Callable[[], Mapping[str, Any]],
) -> None:
    class Ends(SkipResets):
        """Ends the transaction."""

        def apply(self, cursor: Any, changes: Any) -> int:
            count = super().apply(cursor, changes)
            for statement in statements:
                cursor.execute(statement)
            return count

    fill(connection, {1: TOO_MANY_TAGS})
    feed.snapshot({1: TOO_MANY_TAGS})
    for _ in range(2):  # what was committed unnoticed is harmless: it is applied again, with a guard
        with pytest.raises(
            HeadraceError, match=r"apply\(\) ended the transaction.*test_contract_checks\.py:\d+; remove "
        ):
            run(settings, Ends)
        assert ledger()["next"] == 0
    run(settings, SkipResets)
    assert len(written(connection)) <= 1 + ("ROLLBACK" in statements)
    assert ledger()["next"] > 0


def test_apply_may_close_or_change_its_cursor(
    feed: Feed, connection: psycopg.Connection[Any], settings: Settings
) -> None:
    class Closes(SkipResets):
        """Changes the row factory, and closes the cursor."""

        def apply(self, cursor: Any, changes: Any) -> int:
            cursor.row_factory = psycopg.rows.dict_row
            count = super().apply(cursor, changes)
            cursor.close()
            return count

    fill(connection, {1: TOO_MANY_TAGS})
    feed.snapshot({1: TOO_MANY_TAGS})
    run(settings, Closes)
    assert written(connection) == [1]


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        (NothingLeft, r"remaining\(\) returned None, not a number of rows"),
        (CountsByText, r"remaining\(\) returned str, not a number of rows"),
        (CountEndsTransaction, r"remaining\(\) ended the transaction"),
        (WrongCount, r"container_repositoriez.*in remaining\(\) at"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_invalid_remaining_count_is_reported_with_line(
    kind: type[SkipResets], problem: str, connection: psycopg.Connection[Any], settings: Settings
) -> None:
    with pytest.raises(HeadraceError, match=problem) as raised:
        remaining(settings, kind.configure(settings.migration("skip_resets")), "main")
    assert f"{__file__}:" in str(raised.value)


def test_dry_run_checks_return_value_of_decide(feed: Feed, settings: Settings) -> None:
    feed.snapshot({1: TOO_MANY_TAGS})
    migration = NoDecision.configure(settings.migration("skip_resets"))
    with pytest.raises(HeadraceError, match=r"decide\(\) returned None"):
        dry_run(settings, migration, "main", stopping=threading.Event())


class Outdoors(SkipResets):
    """Has incorrect external work."""

    own_tables = "CREATE TABLE IF NOT EXISTS headrace.outdoors (step integer PRIMARY KEY);"

    def work(self, outside: Outside) -> Iterator[Pace]:
        yield 0.5  # type: ignore[misc]

    def given_up(self, cursor: Any) -> Sequence[tuple[str, str, datetime]]:
        return [("name", "reason", "yesterday")]  # type: ignore[list-item]

    def take_up(self, cursor: Any, names: Sequence[str]) -> int:
        return -1

    def unready(self, settings: Settings) -> Iterator[HeadraceError]:
        yield "the disk is away"  # type: ignore[misc]

    def work_status(self, cursor: Any) -> WorkStatus:
        return 7  # type: ignore[return-value]


class Falls(Outdoors):
    """Its work raises, but it lists what it gave up."""

    def work(self, outside: Outside) -> Iterator[Pace]:
        yield Pace.BUSY
        raise OSError(SECRET)

    def given_up(self, cursor: Any) -> Sequence[tuple[str, str, datetime]]:
        return [("name", "reason", datetime(2024, 5, 6, tzinfo=UTC))]


def test_contract_of_external_work_is_checked(
    feed: Feed, connection: psycopg.Connection[Any], settings: Settings
) -> None:
    migration = Outdoors.configure(settings.migration("skip_resets"))
    with pytest.raises(HeadraceError, match=r"work\(\) yielded float, not a Pace, at .*test_contract_checks"):
        run(settings, Outdoors)
    with pytest.raises(HeadraceError, match=r"given_up\(\) returned list, not a list of \(name, reason, datetime\)"):
        read_given_up(settings, migration, "main")
    with pytest.raises(HeadraceError, match=r"take_up\(\) returned -1"):
        take_up(settings, migration, "main", ["name"])
    with pytest.raises(HeadraceError, match=r"unready\(\) returned list, not HeadraceErrors"):
        contract_checks.unready(migration, settings)
    with pytest.raises(HeadraceError, match=r"work_status\(\) returned int, not a WorkStatus"):
        count_given_up(settings, migration, "main")
    with pytest.raises(HeadraceError, match=rf"work\(\) raised OSError, at .*:{line_of('raise OSError(SECRET)')}"):
        run(settings, Falls)
    falls = Falls.configure(settings.migration("skip_resets"))
    assert [one.name for one in read_given_up(settings, falls, "main")] == ["name"]


def test_status_reports_invalid_count_and_continues(
    settings: Settings, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SkipResets, "remaining", NothingLeft.remaining)
    found = {one["name"]: one for one in gather(settings)["migrations"]}
    assert "remaining() returned None" in found["skip_resets"]["error"]
    assert found["skip_resets"]["remaining"] is None

"""A target database that cannot store every character records what happened all the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from consumers.contract.decisions import DeadLetter, Decision, Skip
from consumers.migrations.skip_resets import SkipResets
from consumers.operations.pauses import set_paused
from infra.settings.model import Settings
from infra.state.history import Actor, read_history
from schemas.events import ChangeEvent
from tests.conftest import Database, encoded_database
from tests.consumers.container_repositories import TOO_MANY_TAGS, Feed, fill

pytestmark = pytest.mark.stack


TEXTS = ("no é", "no 日", "bad €", "zoë@日", "für €")


class Names(SkipResets):
    """Skips rows and refuses one, for reasons that few encodings have."""

    def decide(self, event: ChangeEvent) -> Decision:
        assert event.after is not None
        number = int(str(event.after["id"]))
        return DeadLetter("bad €") if number == 1 else Skip("no é") if number % 2 else Skip("no 日")


@pytest.fixture(params=["LATIN1", "EUC_JP", "SQL_ASCII", "UTF8"])
def encoding(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def database(stack: object, encoding: str) -> Iterator[Database]:
    """A database of the encoding."""
    with encoded_database(stack.postgres, encoding) as made:  # type: ignore[attr-defined]
        yield made


def test_reasons_that_the_database_lacks_characters_for_are_recorded(
    encoding: str,
    feed: Feed,
    connection: psycopg.Connection[Any],
    catch_up: Callable[..., Any],
    settings: Settings,
) -> None:
    rows = dict.fromkeys(range(5), TOO_MANY_TAGS)
    fill(connection, rows)
    feed.snapshot(rows)
    migration = Names.configure(settings.migration("skip_resets"))
    assert dataclasses.asdict(catch_up(migration=migration))["dead_letters"] == 1
    set_paused(settings, Names, "main", True, actor=Actor("zoë@日", "für €"))
    connection.execute("SET client_encoding = UTF8")
    reasons = connection.execute(
        "SELECT DISTINCT jsonb_object_keys(skip_reasons) FROM headrace.progress"
        " UNION ALL SELECT reason FROM headrace.dead_letters"
    ).fetchall()
    (entry,) = read_history(connection)
    stored = TEXTS if encoding in {"UTF8", "SQL_ASCII"} else [escaped(text) for text in TEXTS]
    assert {reason for (reason,) in reasons} | {entry.actor, entry.reason} == set(stored)


def escaped(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()

"""Wrong dsns and wrong names of a switchover on real servers: what --status shows, and the guide's remedy.

`the same server` is in test_switchover_guide.
"""

from __future__ import annotations

import psycopg
import pytest

from infra.postgres.control import Owner, database_name, ensure_control_schema, owners
from producers.switchover.endpoints import NotMovable
from tests.conftest import Database
from tests.producers.switchover.ends import CI, MAIN, SHARED, Ends, on_the_oldest_too

pytestmark = pytest.mark.stack


def refused(ends: Ends, words: str, source: str = "first", to: str = "second") -> None:
    """Fail unless both the switchover and --abort are refused."""
    for command in (ends.run, ends.abort):
        with pytest.raises(NotMovable, match=words):
            command(CI, source=source, to=to)


def test_wrong_ends_before_the_promotion_are_refused(ends: Ends, database: Database) -> None:
    ensure_control_schema(database.connect(), "first", [MAIN, CI, SHARED])
    ends.lead("second", database.dsn)
    assert ends.states(CI) == ["another cluster", "not known"]
    refused(ends, r"not a physical copy of first: .*point databases\.second\.dsn at a standby of first")
    ends.lead("second", ends.first_dsn)
    ends.lead("first", ends.second_dsn)
    assert ends.states(CI) == ["the source is a standby", "not known"]
    refused(ends, "first is a standby; point its dsn at the primary")
    ends.lead("second", ends.second_dsn)
    ends.lead("first", ends.first_dsn)
    ends.lead("third", ends.first_dsn)
    assert ends.states(CI, source="third") == ["the source has another name", "not known"]
    refused(ends, "the settings call it third, but it is recorded as first; correct the dsn", source="third")
    assert ends.owners_of(CI) == (Owner("first", 1), Owner("first", 1))
    assert ends.states(CI) == ["a standby", "not started"]
    assert ends.run(CI)


@on_the_oldest_too
def test_wrong_ends_after_the_opening_are_refused(ends: Ends) -> None:
    assert ends.run(MAIN)
    ends.lead("third", ends.second_dsn)
    assert ends.states(CI, to="third") == ["the destination has another name", "not known"]
    refused(ends, "the settings call the copy third, but it is recorded as second; correct the dsn", to="third")
    follower = ends.standby_of("second", "follower")
    ends.lead("second", follower.dsn(ends.name))
    assert ends.states(MAIN) == ["a standby of the new owner", "not known"]
    refused(ends, "the dsn of second leads to a standby of it; point it at the primary")
    ends.lead("second", ends.second_dsn)
    assert ends.states(MAIN) == ["named", "open"]
    assert ends.run(MAIN)
    assert ends.owners_of(CI) == (Owner("first", 1), Owner("first", 1))


@pytest.mark.long
def test_schema_of_another_owner_is_moved_from_that_owner(ends: Ends) -> None:
    assert ends.run(CI)
    ends.forget_second()
    third = ends.standby_of("second", "third")
    ends.lead("third", third.dsn(ends.name))
    assert ends.states(MAIN, source="second", to="third") == ["a standby", "owned by another"]
    for command in (ends.run, ends.abort):
        with pytest.raises(NotMovable, match="gitlab_main is owned by first, not by second; name the database that"):
            command(MAIN, source="second", to="third")
    assert ends.run(CI, source="second", to="third")
    assert ends.states(CI) == ["named", "moved on"]
    refused(ends, "gitlab_ci was released to second, which has since given it to third; name the database that owns it")
    fourth = ends.standby_of("third", "fourth")
    ends.lead("fourth", fourth.dsn(ends.name))
    assert ends.run(CI, source="third", to="fourth")
    ends.lead("fifth", ends.standby_of("first", "fifth").dsn(ends.name))
    assert ends.run(MAIN, to="fifth")
    with psycopg.connect(fourth.dsn(ends.name)) as connection:
        assert database_name(connection) == owners(connection)[CI].name == "fourth"
    for name, gitlab_schema in (("fourth", CI), ("fifth", MAIN)):
        assert ends.owner_by(name, gitlab_schema) == name

"""A killed step of a switchover is done and recorded, or neither; a promotion and a new slot are recorded later."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from infra.postgres.control import Owner, database_name, owners
from infra.state.history import HistoryEntry, OperatorAction, whole_history
from producers.source import slots
from tests.killed_commands import Point, await_end, killed_command
from tests.producers.switchover.ends import MAIN, Ends

pytestmark = pytest.mark.stack


def recorded(ends: Ends) -> list[HistoryEntry]:
    return list(whole_history(ends.settings, subjects=[MAIN]).entries)


def steps(ends: Ends) -> list[str]:
    return [each.details["step"] for each in recorded(ends)]


def kill(ends: Ends, point: Point, *options: str) -> None:
    """Run the switchover up to the point of the first step that it records."""
    words = ends.command(MAIN, options=(*options, "--reason", "CHG-7"))[3:]
    assert killed_command(point, OperatorAction.SWITCHOVER, *words)
    await_end(ends.first, ends.second)


def answer(connection: psycopg.Connection[Any], query: str) -> object:
    row = connection.execute(query.encode()).fetchone()
    return row[0] if row else None


def done(ends: Ends, step: str) -> bool:
    """Return whether a step is done, by what it changes."""
    claim = "SELECT claim IS NOT NULL FROM headrace.switchovers WHERE gitlab_schema = 'gitlab_main'"
    stage = "SELECT stage FROM headrace.switchovers WHERE gitlab_schema = 'gitlab_main'"
    match step:
        case "close":
            return owners(ends.first)[MAIN].name == "second"
        case "promote":
            return answer(ends.second, "SELECT pg_is_in_recovery()") is False
        case "slot":
            return slots.read(ends.second, ends.slot) is not None
        case "claim":
            return answer(ends.second, claim) is True
        case "release":
            return answer(ends.first, stage) == "released"
        case _:
            return database_name(ends.second) == "second"


@pytest.mark.long
def test_step_killed_at_any_point_is_done_and_recorded_or_neither(ends: Ends) -> None:
    for step in ("close", "claim", "release", "open"):
        for point in Point:
            kill(ends, point)
            assert (done(ends, step), step in steps(ends)) == (point is Point.COMMITTED,) * 2, (step, point)
        for outside in ("promote", "slot") if step == "close" else ():
            kill(ends, Point.UNRECORDED)
            assert (done(ends, outside), outside in steps(ends)) == (True, False), outside
    assert ends.run()
    entries = recorded(ends)
    assert [each.details["step"] for each in entries] == ["close", "promote", "slot", "claim", "release", "open"]
    assert [each.details["step"] for each in entries if each.details.get("done_before")] == ["promote", "slot"]
    assert {each.reason for each in entries} == {"CHG-7"}
    assert len({each.request for each in entries[1:4]}) == 1, "the command that claimed"


@pytest.mark.long
def test_promotion_and_slot_that_were_recorded_are_not_recorded_again(ends: Ends) -> None:
    kill(ends, Point.COMMITTED)
    for step in ("promote", "slot"):
        kill(ends, Point.RECORDED)
        assert (done(ends, step), steps(ends)[-1]) == (True, step)
    assert ends.run()
    assert steps(ends) == ["close", "promote", "slot", "claim", "release", "open"]
    assert not any(each.details.get("done_before") for each in recorded(ends))


def test_promotion_by_other_tooling_is_recorded_as_done_before(ends: Ends) -> None:
    ends.run_to("replay")
    ends.standby.promote()
    assert ends.run(promote=False)
    promoted = [each for each in recorded(ends) if each.details["step"] == "promote"]
    assert [each.details["done_before"] for each in promoted] == [True]


@pytest.mark.parametrize("point", list(Point))
def test_killed_abort_is_done_and_recorded_or_neither(ends: Ends, point: Point) -> None:
    ends.run_to("replay")
    kill(ends, point, "--abort")
    taken_back = point is Point.COMMITTED
    assert (owners(ends.first)[MAIN].name == "first", "abort" in steps(ends)) == (taken_back, taken_back)
    ends.abort()
    assert steps(ends) == ["close", "abort"]
    assert ends.owners_of(MAIN) == (Owner("first", 3), Owner("first", 3))

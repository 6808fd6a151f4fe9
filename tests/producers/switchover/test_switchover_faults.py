"""Faults that made two owners, lost a write or left a switchover stuck, on a real primary and physical standbys."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from pathlib import Path

import psycopg
import pytest

from consumers.testing.waiting import until
from infra.postgres.control import Owner, database_name, owners
from producers.source import slots
from producers.switchover.endpoints import Move
from producers.switchover.steps import opened
from schemas.errors import HeadraceError, Refused
from tests.consumers.services import ROOT
from tests.prepared import ended
from tests.producers.servers import own_server
from tests.producers.switchover.ends import CI, MAIN, Ends, on_the_oldest_too

pytestmark = pytest.mark.stack


def test_abort_of_one_schema_too_many_changes_nothing(ends: Ends) -> None:
    assert ends.run(MAIN)
    with pytest.raises(Refused, match="gitlab_main"):
        ends.abort(MAIN, CI)
    assert ends.open_on(MAIN) == ["second"]
    assert ends.open_on(CI) == ["first"]


def test_abort_in_the_other_direction_changes_nothing(ends: Ends) -> None:
    assert ends.run(MAIN)
    with pytest.raises(Refused), opened(ends.settings, Move((CI, MAIN), "second", "first")) as moving:
        moving.abort()
    assert ends.open_on(MAIN) == ["second"]
    assert ends.open_on(CI) == ["first"]


def test_abort_of_a_schema_that_was_never_closed_changes_nothing(ends: Ends) -> None:
    ends.run_to("replay", MAIN)
    with pytest.raises(Refused, match="gitlab_ci"):
        ends.abort(MAIN, CI)
    assert ends.owners_of(MAIN)[0].name == "second"
    ends.abort(MAIN)
    assert ends.open_on(MAIN) == ["first"]


@pytest.mark.long
@on_the_oldest_too
@pytest.mark.parametrize("prepared", [False, True])
def test_slot_under_creation_opens_nothing(ends: Ends, prepared: bool) -> None:
    ends.run_to("replay", MAIN)
    ends.standby.promote()
    with psycopg.connect(ends.second_dsn) as writer:
        writer.execute("CREATE TABLE public.held (id int)")
        if prepared:
            writer.execute("PREPARE TRANSACTION 'held'")
            writer.commit()
        with ended(ends.second, "held"):
            command = ends.command(MAIN)
            moving = subprocess.Popen(command, cwd=ROOT)
            until(lambda: slots.read(ends.second, ends.slot) is not None, "the slot is being made")
            moving.send_signal(signal.SIGKILL)
            moving.wait()
            with pytest.raises(HeadraceError):
                ends.run(MAIN, seconds=3.0)
            assert database_name(ends.second) == "first", "not open: its producer's slot has no position yet"
        if not prepared:
            writer.rollback()
    assert ends.run(MAIN)
    made = slots.read(ends.second, ends.slot)
    assert made is not None
    assert made.confirmed_flush is not None


@on_the_oldest_too
def test_move_between_two_dsns_of_one_server_is_refused(ends: Ends) -> None:
    ends.run_to("close", MAIN)
    ends.lead("second", ends.first_dsn)
    with pytest.raises(Refused):
        ends.run(MAIN)
    assert database_name(ends.first) == "first"
    assert slots.read(ends.first, ends.slot) is None
    ends.lead("second", ends.second_dsn)
    assert ends.run(MAIN)


def test_database_that_owns_a_schema_gets_no_other_and_must_be_kept(ends: Ends) -> None:
    assert ends.run(MAIN)
    ends.second.execute("INSERT INTO public.projects VALUES (1)")
    with pytest.raises(Refused) as refused:
        ends.run(CI)
    assert "from_scratch" not in str(refused.value)
    assert "another" in str(refused.value)
    assert ends.owners_of(CI)[0] == Owner("first", 1)


def test_new_standby_under_the_name_of_an_owner_is_not_opened_with_stale_rows(ends: Ends) -> None:
    assert ends.run(MAIN)
    ends.second.execute("INSERT INTO public.projects VALUES (1)")
    with ends.other_standby("from_scratch") as from_scratch:
        ends.lead("second", from_scratch)
        with pytest.raises(Refused):
            ends.run(CI)
        with psycopg.connect(from_scratch) as connection:
            assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
    assert ends.owners_of(CI)[0] == Owner("first", 1)


@on_the_oldest_too
def test_schema_taken_back_is_not_opened_by_another_move(ends: Ends) -> None:
    ends.run_to("replay", MAIN, CI)
    ends.stop_receiving("second")
    # What --abort writes, on a copy that is promoted before it has replayed that.
    ends.first.execute(
        "UPDATE headrace.switchovers SET epoch = 3, stage = 'taken back' WHERE gitlab_schema = 'gitlab_ci';"
        "UPDATE headrace.schema_ownership SET owner = 'first', epoch = 3 WHERE gitlab_schema = 'gitlab_ci'"
    )
    ends.standby.promote()
    assert ends.owners_of(CI) == (Owner("first", 3), Owner("second", 2))
    assert ends.run(MAIN)
    assert ends.open_on(MAIN) == ["second"]
    assert ends.open_on(CI) == ["first"]


def test_old_primary_that_lost_the_close_in_a_failover_is_no_second_owner(prefix: str, tmp_path: Path) -> None:
    with own_server() as server, Ends(server, prefix, tmp_path) as ends:
        with ends.other_standby("spare") as spare:
            ends.stop_receiving("spare")
            with contextlib.suppress(HeadraceError):
                ends.run(MAIN, seconds=3.0)
            server.abandon()
            ends.server_of("spare").promote()
            ends.lead("first", spare)
            with psycopg.connect(spare) as connection:
                now = owners(connection)[MAIN]
                name = database_name(ends.second)
            assert (now.name, name) != ("first", "second")


@pytest.mark.long
def test_sigterm_ends_slot_creation(ends: Ends) -> None:
    ends.run_to("replay", MAIN)
    ends.standby.promote()
    with psycopg.connect(ends.second_dsn) as writer:
        writer.execute("CREATE TABLE public.held (id int)")
        moving = subprocess.Popen(ends.command(MAIN), cwd=ROOT, stderr=subprocess.PIPE)
        until(lambda: slots.read(ends.second, ends.slot) is not None, "the slot is being made")
        moving.terminate()
        _, said = moving.communicate(timeout=60)
        assert moving.returncode == 1
        assert b"Traceback" not in said
        until(lambda: slots.read(ends.second, ends.slot) is None, "nothing is left of the slot")

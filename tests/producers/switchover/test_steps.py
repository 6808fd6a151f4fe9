"""The steps of a switchover on a real primary and a real physical standby: killed, refused, taken back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from infra.postgres.advisory_locks import ownership_key
from infra.postgres.control import Owner, database_name, owners
from infra.settings.model import Settings
from infra.state.history import whole_history
from producers.source import slots
from producers.switchover import other_switchovers, proofs
from producers.switchover.endpoints import Move, NotMovable
from producers.switchover.new_slot import SlotTaken
from producers.switchover.rules import Step
from producers.switchover.step_limit import Busy
from producers.switchover.steps import PastNoReturn, opened
from schemas.errors import HeadraceError, UsageError
from tests.documents import hold
from tests.producers.switchover.ends import Ends, on_the_oldest_too

pytestmark = pytest.mark.stack

ROOT = Path(__file__).parents[3]

KILLED = """
import os, signal, sys
from pathlib import Path
from infra.settings.file import load_settings
from producers.switchover.endpoints import Move
from producers.switchover.steps import opened

def die(step):
    if step == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)

with opened(load_settings(Path(sys.argv[1])), Move(("gitlab_main",), "first", "second")) as moving:
    moving.run(after=die)
"""


def test_switchover_killed_after_each_step_is_completed_by_a_rerun(ends: Ends) -> None:
    for step in Step:
        killed = subprocess.run([sys.executable, "-c", KILLED, ends.config, step.name.lower()], cwd=ROOT, check=False)
        assert killed.returncode == -signal.SIGKILL
    command = [sys.executable, "-m", "headrace", "switchover", "gitlab_main", "--from", "first", "--to", "second"]
    done = subprocess.run(
        [*command, "--yes", "--json", "--config", ends.config], cwd=ROOT, check=True, capture_output=True, text=True
    )
    hold(("switchover", "--json"), done.stdout)
    report = json.loads(done.stdout)
    assert report["complete"]
    assert [step["name"] for step in report["steps"] if step["done"]] == [step.name.lower() for step in Step]
    assert (database_name(ends.first), database_name(ends.second)) == ("first", "second")
    assert ends.owners_of("gitlab_main") == (Owner("second", 2), Owner("second", 2))
    assert ends.owners_of("gitlab_ci") == (Owner("first", 1), Owner("first", 1)), (
        "schemas that stay are the old side's on both"
    )
    assert ends.owners_of("gitlab_shared") == (Owner("first", 1), Owner("second", 2)), "every database has its own"
    assert slots.read(ends.second, f"{ends.settings.prefix}_second") is not None
    assert ends.run(), "idempotent"
    recorded = whole_history(ends.settings, subjects=["gitlab_main"]).entries
    assert [each.details["step"] for each in recorded] == ["close", "promote", "slot", "claim", "release", "open"]
    with pytest.raises(
        PastNoReturn,
        match=r"gitlab_main cannot be taken back: second was promoted with .*; complete it by running the switchover",
    ):
        ends.abort()


def test_switchover_runs_nothing_planted_in_public(ends: Ends) -> None:
    ends.first.execute(
        "CREATE TABLE public.ran (what text);"
        " CREATE FUNCTION public.pg_promote(boolean, smallint) RETURNS boolean LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO public.ran VALUES ('pg_promote'); RETURN true; END $$;"
        f' ALTER DATABASE "{ends.first.info.dbname}" SET search_path = public, pg_catalog'
    )
    assert ends.run()
    assert ends.second.execute("SELECT what FROM public.ran").fetchall() == []
    assert ends.second.execute("SELECT pg_catalog.pg_is_in_recovery()").fetchone() == (False,)


@pytest.mark.long
@on_the_oldest_too
def test_switchover_is_taken_back_until_the_promotion_and_repeated_later(ends: Ends) -> None:
    for step in ("close", "replay"):
        killed = subprocess.run([sys.executable, "-c", KILLED, ends.config, step], cwd=ROOT, check=False)
        assert killed.returncode == -signal.SIGKILL
        epoch = owners(ends.first)["gitlab_main"].epoch
        for _ in range(2):  # idempotent
            ends.abort()
            assert ends.owners_of("gitlab_main") == (Owner("first", epoch + 1), Owner("first", epoch + 1))
    assert ends.run()
    assert ends.owners_of("gitlab_main") == (Owner("second", 6), Owner("second", 6))


def test_switchover_waits_for_ownership_locks_and_times_out_unchanged(ends: Ends) -> None:
    with ends.first.transaction():
        ends.first.execute("SELECT 1 FROM headrace.schema_ownership WHERE gitlab_schema = 'gitlab_main' FOR SHARE")
        with pytest.raises(
            Busy,
            match="timed out after 5 s waiting for transactions on first to release their ownership locks; Run it",
        ):
            ends.run(seconds=5.0)
    assert ends.owners_of("gitlab_main") == (Owner("first", 1), Owner("first", 1))


def test_standby_is_promoted_by_other_tooling(ends: Ends) -> None:
    with pytest.raises(NotMovable, match="second is still a standby; promote it with your own tooling"):
        ends.run(promote=False)
    assert ends.owners_of("gitlab_main")[0] == Owner("second", 2), "closed meanwhile"
    ends.standby.promote()
    assert ends.run(promote=False)


def test_copy_promoted_too_early_gets_nothing_and_the_schema_is_taken_back(ends: Ends) -> None:
    ends.standby.promote()
    with pytest.raises(NotMovable, match="second was promoted before it was given gitlab_main, and lacks what first"):
        ends.run()
    assert ends.open_on("gitlab_main") == ["first"]
    with pytest.raises(NotMovable, match="gitlab_main was never closed for second"):
        ends.abort()
    assert ends.owners_of("gitlab_main")[0] == Owner("first", 1)


def test_copy_promoted_without_the_close_lets_the_schema_be_taken_back(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_probe = proofs.has_probe

    def then_the_copy_gets_no_more(connection: psycopg.Connection[Any], value: UUID) -> bool:
        found = has_probe(connection, value)
        if found:
            ends.stop_receiving("second")
        return found

    monkeypatch.setattr(proofs, "has_probe", then_the_copy_gets_no_more)
    ends.run_to("close")
    monkeypatch.undo()
    assert ends.owners_of("gitlab_main")[0] == Owner("second", 2)
    ends.standby.promote()
    with pytest.raises(
        NotMovable, match="take gitlab_main back with --abort; unless first failed over to it, rebuild it"
    ):
        ends.run()
    for _ in range(2):
        ends.abort()
        assert owners(ends.first)["gitlab_main"] == Owner("first", 3)
    with pytest.raises(NotMovable, match="promoted before"):
        ends.run()
    assert database_name(ends.second) == "first", "never opened"


def test_publication_without_the_owners_is_refused(ends: Ends) -> None:
    ends.first.execute("CREATE PUBLICATION headrace FOR TABLE ONLY projects WITH (publish_via_partition_root = true)")
    with pytest.raises(NotMovable, match=r"publication headrace of first lacks headrace\.schema_ownership"):
        ends.run()
    assert ends.owners_of("gitlab_main")[0] == Owner("first", 1)


def test_unrelated_database_is_refused(ends: Ends) -> None:
    ends.first.execute("UPDATE headrace.schema_ownership SET owner = 'third' WHERE gitlab_schema = 'gitlab_main'")
    with pytest.raises(NotMovable, match="gitlab_main is owned by third, not by first"):
        ends.run()
    ends.first.execute("UPDATE headrace.database SET name = 'third'")
    with pytest.raises(NotMovable, match="the settings call it first, but it is recorded as third"):
        ends.run()


@pytest.mark.parametrize(
    ("move", "words"),
    [
        (Move(("gitlab_main",), "first", "first"), "first cannot be both ends"),
        (Move(("gitlab_shared",), "first", "second"), "gitlab_shared does not move: every database has its own"),
        (Move(("gitlab_ci",), "first", "second"), "database second does not list gitlab_ci; add it to"),
        (Move(("gitlab_main",), "first", "third"), "no database named 'third'"),
    ],
)
def test_move_that_is_not_in_the_settings_is_refused(move: Move, words: str) -> None:
    databases = {
        "first": {"dsn": "postgresql://h/a", "gitlab_schemas": ["gitlab_main", "gitlab_ci"]},
        "second": {"dsn": "postgresql://h/b", "gitlab_schemas": ["gitlab_main"]},
    }
    with pytest.raises(UsageError, match=words), opened(Settings.model_validate({"databases": databases}), move):
        pass


def test_error_names_its_server(ends: Ends) -> None:
    ends.standby.abandon()
    port = conninfo_to_dict(ends.second_dsn)["port"]
    with pytest.raises(HeadraceError, match=f"127.0.0.1:{port}/.* does not answer"):
        ends.run()
    assert owners(ends.first)["gitlab_main"] == Owner("first", 1)


def test_second_switchover_is_refused_while_the_first_runs(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_switchovers, "_LOCK_LOOKS", 3)
    ends.first.execute("SELECT pg_advisory_lock(%s)", (other_switchovers.LOCK,))
    with pytest.raises(
        NotMovable, match=r"another switchover is running: .* \(process \d+, since .*end the session with"
    ):
        ends.run()
    ends.first.execute("SELECT pg_advisory_unlock(%s)", (other_switchovers.LOCK,))
    assert ends.run()


def test_session_of_an_earlier_switchover_on_the_new_side_is_terminated(ends: Ends) -> None:
    with psycopg.connect(ends.second_dsn) as earlier:
        earlier.execute("SELECT pg_advisory_lock(%s)", (other_switchovers.FENCE,))
        earlier.commit()
        assert ends.run()
        with pytest.raises(psycopg.errors.AdminShutdown):
            earlier.execute("UPDATE headrace.database SET name = 'first'")


def test_slot_of_another_program_is_kept(ends: Ends) -> None:
    ends.run_to("replay")
    ends.standby.promote()
    ends.second.execute("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", (ends.slot,))
    with pytest.raises(SlotTaken, match=r"with plugin test_decoding .*; Choose another name with databases"):
        ends.run()
    ends.second.execute("SELECT pg_drop_replication_slot(%s)", (ends.slot,))
    assert ends.run()


def test_transactions_of_other_schemas_are_not_waited_for(ends: Ends) -> None:
    with ends.first.transaction():
        ends.first.execute("SELECT pg_advisory_xact_lock_shared(%s)", (ownership_key("gitlab_ci"),))
        ends.run_to("close")
        with psycopg.connect(ends.first_dsn) as connection:
            assert owners(connection)["gitlab_main"] == Owner("second", 2)


@pytest.mark.long
def test_role_without_rights_is_refused(ends: Ends) -> None:
    ends.first.execute("GRANT USAGE ON SCHEMA headrace TO pg_monitor; SET ROLE pg_monitor")
    with pytest.raises(
        NotMovable, match="the dsn's role lacks the rights to move a gitlab schema; run this command as an"
    ):
        proofs.require_rights(ends.first, ends.second, promotes=True)

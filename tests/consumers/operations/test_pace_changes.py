"""`headrace pace` on real servers: a running consumer obeys it, and what is not given stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from consumers.testing.waiting import until
from infra.state.history import operator, read_history
from tests.consumers.conftest import Member
from tests.consumers.container_repositories import TOO_MANY_TAGS, Feed, fill, written
from tests.shells import Shell

NAME = "skip_resets"
ROWS = 500


@pytest.fixture
def shell(config: Path) -> Shell:
    return Shell(config.parent)


def status(shell: Shell) -> dict[str, Any]:
    (found,) = [one for one in json.loads(shell.run("status", "--json").out)["migrations"] if one["name"] == NAME]
    return dict(found)


@pytest.mark.long
@pytest.mark.stack
def test_running_consumer_obeys_the_command(
    feed: Feed, connection: psycopg.Connection[Any], members: Callable[..., Member], shell: Shell
) -> None:
    """At one row in a thousand seconds, and then without limit, none of which its settings say."""
    shell.run("pace", NAME, "--max-rate", "0.001", "--reason", "CHG-7")
    members()
    rows = dict.fromkeys(range(ROWS), TOO_MANY_TAGS)
    fill(connection, rows)
    feed.snapshot(rows)
    until(lambda: written(connection), "it begins")
    begun = len(written(connection))
    until(lambda: status(shell)["applied"] >= 1, "the ledger has it")
    assert len(written(connection)) == begun < ROWS
    assert status(shell)["max_rate"] == 0.001
    shell.run("pace", NAME, "--max-rate", "0")
    until(lambda: status(shell)["state"] == "caught_up", "it continues without limit")
    assert len(written(connection)) == ROWS
    entries = read_history(connection)
    assert [(one.action, one.reason, one.details["max_rate"]) for one in entries] == [
        ("pace", "CHG-7", 0.001),
        ("pace", None, 0),
    ]
    assert {one.actor for one in entries} == {operator().name}


@pytest.mark.long
@pytest.mark.stack
def test_value_that_is_not_given_stays(feed: Feed, catch_up: Callable[..., object], shell: Shell) -> None:
    catch_up()

    def pace(*options: str) -> tuple[float | None, int | None]:
        found = json.loads(shell.run("pace", NAME, *options, "--json").out)
        return found["max_rate"], found["transaction_ms"]

    assert pace("--max-rate", "100") == (100, None)
    assert pace("--transaction-ms", "50") == (100, 50)
    assert pace("--max-rate", "0") == (0, 50)
    assert (status(shell)["max_rate"], status(shell)["transaction_ms"]) == (0, 50)
    assert pace("--as-in-settings") == (None, None)
    assert (status(shell)["max_rate"], status(shell)["transaction_ms"]) == (0, 200)
    said = shell.run("pace", NAME, "--max-rate", "2.5").out
    assert said == f"{NAME}: max_rate 2.5, transaction_ms as in the settings; its consumers follow within a second\n"


@pytest.mark.stack
def test_pace_is_shown_before_the_first_run(feed: Feed, shell: Shell) -> None:
    shell.run("pace", NAME, "--max-rate", "7", "--transaction-ms", "30")
    shown = status(shell)
    assert (shown["run"], shown["state"], shown["max_rate"], shown["transaction_ms"]) == (0, "waiting", 7, 30)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "no pace was given; give --max-rate"),
        (("--as-in-settings", "--max-rate", "5"), "--as-in-settings excludes --max-rate"),
        (("--max-rate", "-1"), "max_rate cannot be -1"),
        (("--max-rate", "nan"), "max_rate cannot be nan"),
        (("--max-rate", "1e10"), "max_rate cannot be 1e+10"),
        (("--transaction-ms", "0"), "transaction_ms cannot be 0"),
    ],
)
def test_pace_that_cannot_be_is_refused(tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    shell = Shell(tmp_path)
    shell.settings("postgresql://u@127.0.0.1:1/d", "127.0.0.1:1")
    assert words in shell.call("pace", NAME, *options).error(2)

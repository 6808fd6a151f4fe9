"""A producer's stream must not count as a synchronous standby, since commits would wait for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from consumers.testing.waiting import until
from producers.session.check import hindrances
from producers.source.synchronous_commits import application_name, counted
from tests.producers.sources import Source, running

NAME = application_name("main")

MATCHING = (
    "*",
    " * ",
    "replica, *",
    "FIRST 1 (*)",
    "any 2 (replica, *)",
    "2 (*)",
    'ANY 1 ("*")',
    '"headrace main"',
    '"Headrace MAIN"',
    'replica, "headrace main"',
    'FIRST 1 ("replica (2)", "headrace main")',
)
OTHERS = (
    "",
    " ",
    "nobody",
    "FIRST 1 (replica)",
    'ANY 1 (replica, "other")',
    "headrace, main",
    '"headrace main 2"',
    '"a ""headrace main"" of another"',
    '"a * of another"',
    '"headrace ci", "FIRST 1 (*)"',
)


@pytest.mark.parametrize("setting", MATCHING)
def test_setting_that_matches_the_producers_connection_counts_it(setting: str) -> None:
    assert counted(setting, None, NAME)


@pytest.mark.parametrize("setting", OTHERS)
def test_setting_that_names_others_does_not_count_it(setting: str) -> None:
    assert not counted(setting, None, NAME)


@pytest.mark.parametrize(("state", "counts"), [("sync", True), ("quorum", True), ("potential", True), ("async", False)])
def test_state_of_a_running_stream_decides_whatever_the_setting_looks_like(state: str, counts: bool) -> None:
    for setting in ("*", "nobody"):
        assert counted(setting, state, NAME) is counts


def test_long_name_is_compared_as_the_server_cuts_it_off() -> None:
    long = application_name("m" * 63)
    assert counted(f'"headrace {"m" * 54}"', None, long)
    assert not counted(f'"{long}"', None, long)


@pytest.mark.stack
@pytest.mark.usefixtures("standby_that_never_answers")
def test_check_names_a_producer_for_which_commits_wait(new_source: Callable[..., Source]) -> None:
    source = new_source("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)", "public.t")

    def found() -> list[str]:
        each = hindrances(source.connection, source.settings, "main", None)
        return [finding.problem for finding in each if "synchronous_standby_names" in finding.problem]

    assert found() == []
    source.connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
    source.connection.execute("SELECT pg_reload_conf()")
    with running(source) as producer:
        producer.caught_up()
        until(lambda: bool(found()), "its stream to take the setting")
        assert [problem.partition(":")[0] for problem in found()] == ["commits wait for the producer of main"]

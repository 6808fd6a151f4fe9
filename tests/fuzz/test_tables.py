"""A few rounds of the fuzz of tables, and that it fails for what it is made to find."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from infra.stack import Stack
from tests.fuzz.acts import CATCH_UP, PASS, START, STOP, Act
from tests.fuzz.planted import PLANTS, planted
from tests.fuzz.reasons import publication
from tests.fuzz.rounds import play
from tests.fuzz.script import Script, draw
from tests.fuzz.world import Broken, World
from tests.producers.folding import read_topics
from tests.server_versions import MAJORS, NEWEST

stack = pytest.mark.stack

SEEDS = (3,)
"""Of rounds that are short, and differ."""

MADE = [Act("make a table", (f"CREATE TABLE public.{name} (id int PRIMARY KEY, v text)",)) for name in ("t", "other")]
ROWS = Act("rows", ("INSERT INTO public.t SELECT i, 'v' FROM generate_series(1, 5) i",))


@pytest.fixture(scope="module")
def world(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(stack.postgres, stack.endpoints.bootstrap_servers, tmp_path_factory.mktemp("fuzz"))
    yield made
    made.close()


def script(*acts: Act, first: tuple[Act, ...] = (*MADE, ROWS)) -> Script:
    return Script(0, "UTF8", (), ("public.t", "public.other"), first, (START, CATCH_UP, *acts, STOP), 3)


def test_a_round_is_the_same_for_its_seed_and_another_for_another() -> None:
    for version in MAJORS:
        assert draw(7, version) == draw(7, version)
        assert draw(7, version).described() != draw(8, version).described()


@pytest.mark.parametrize("name", PLANTS)
def test_what_mends_a_fault_is_still_where_it_can_be_taken_out(name: str) -> None:
    with planted(name):
        pass


@stack
@pytest.mark.parametrize("seed", SEEDS)
def test_rounds_keep_every_promise(world: World, seed: int) -> None:
    outcome = play(world, draw(seed, NEWEST))
    assert sum(outcome.equal.values()) > 0


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong after the producer has looked is wrong."""
    monkeypatch.setattr("tests.fuzz.rounds._SETTLES", 0.0)
    monkeypatch.setattr("tests.fuzz.rounds._LOOKS", 2)


@stack
@pytest.mark.usefixtures("impatient")
def test_a_record_that_is_missing_fails(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tests.fuzz.rounds.read_topics",
        lambda settings, topics: {topic: records[:-1] for topic, records in read_topics(settings, topics).items()},
    )
    with pytest.raises(Broken, match=r"public\.t: 5 rows in the table, 4 in the topic"):
        play(world, script())


DROPPED = Act("drop the publication", ("DROP PUBLICATION headrace",))


@stack
def test_a_refused_start_has_its_remedy_followed_if_something_that_happened_is_the_reason(world: World) -> None:
    with pytest.raises(
        Broken, match=r"nothing .* was a reason .*: publication headrace of main (was dropped|does not exist)"
    ):
        play(world, script(PASS, DROPPED, PASS))
    justified = replace(DROPPED, justifies=(publication("was dropped"), publication("does not exist any more")))
    outcome = play(world, script(PASS, justified, PASS))
    assert len(outcome.refusals) == 1
    assert outcome.equal == {"public.t": 5, "public.other": 0}


@stack
@pytest.mark.usefixtures("impatient")
def test_a_table_that_was_stopped_for_nothing_that_happened_fails(world: World) -> None:
    renamed = Act("rename", ("ALTER TABLE public.t RENAME COLUMN v TO w", "UPDATE public.t SET w = 'x'"))
    with pytest.raises(Broken, match=r"nothing .* public\.t was a reason .*: column v is called w now"):
        play(world, script(renamed))


UNWRITABLE = Act(
    "make a table",
    (
        "CREATE TABLE public.t (id int PRIMARY KEY, v text, w int GENERATED ALWAYS AS (1) VIRTUAL)",
        "ALTER TABLE public.t REPLICA IDENTITY FULL",
    ),
)
FOUND = {
    "unwritable": (
        script(Act("write", ("UPDATE public.t SET v = 'w'",)), first=(UNWRITABLE, MADE[1], ROWS)),
        "a write of the application failed",
    ),
    "attribute_number": (
        script(Act("change", ("ALTER TABLE public.t DROP v", "ALTER TABLE public.t ADD v text")), CATCH_UP),
        r"public\.t: 5 rows in the table, 5 in the topic",
    ),
}
"""Fault → the shortest round that has to find it, and how."""


@stack
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", FOUND)
def test_a_fault_that_is_put_back_is_found(world: World, name: str) -> None:
    played, how = FOUND[name]
    with planted(name), pytest.raises(Broken, match=how):
        play(replace(world, plant=name), played)

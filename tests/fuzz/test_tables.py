"""Plays a few rounds of the fuzz of tables, and proves that the fuzz fails for what it has to find."""

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
"""Seeds of short rounds that differ."""

MADE = [Act("make a table", (f"CREATE TABLE public.{name} (id int PRIMARY KEY, v text)",)) for name in ("t", "other")]
ROWS = Act("rows", ("INSERT INTO public.t SELECT i, 'v' FROM generate_series(1, 5) i",))


@pytest.fixture(scope="module")
def world(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(stack.postgres, stack.endpoints.bootstrap_servers, tmp_path_factory.mktemp("fuzz"))
    yield made
    made.close()


def script(*acts: Act, first: tuple[Act, ...] = (*MADE, ROWS)) -> Script:
    return Script(0, "UTF8", (), ("public.t", "public.other"), first, (START, CATCH_UP, *acts, STOP), 3)


def test_seed_determines_the_round() -> None:
    for version in MAJORS:
        assert draw(7, version) == draw(7, version)
        assert draw(7, version).described() != draw(8, version).described()


@pytest.mark.parametrize("name", PLANTS)
def test_fix_of_a_fault_is_where_the_plant_replaces_it(name: str) -> None:
    with planted(name):
        pass


@stack
@pytest.mark.parametrize("seed", SEEDS)
def test_rounds_keep_every_promise(world: World, seed: int) -> None:
    outcome = play(world, draw(seed, NEWEST))
    assert sum(outcome.equal.values()) > 0


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge each table at the first look after the producer has caught up."""
    monkeypatch.setattr("tests.fuzz.rounds._SETTLES", 0.0)
    monkeypatch.setattr("tests.fuzz.rounds._LOOKS", 2)


@stack
@pytest.mark.usefixtures("impatient")
def test_missing_record_fails_the_round(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tests.fuzz.rounds.read_topics",
        lambda settings, topics: {topic: records[:-1] for topic, records in read_topics(settings, topics).items()},
    )
    with pytest.raises(Broken, match=r"public\.t: 5 rows in the table, 4 in the topic"):
        play(world, script())


DROPPED = Act("drop the publication", ("DROP PUBLICATION headrace",))


@pytest.mark.long
@stack
def test_remedy_of_a_refused_start_is_followed_only_if_an_act_justifies_it(world: World) -> None:
    with pytest.raises(Broken, match=r"no act on .* justifies .*: publication headrace of main no longer exists"):
        play(world, script(PASS, DROPPED, PASS))
    justified = replace(DROPPED, justifies=(publication("was dropped"), publication("no longer exists")))
    outcome = play(world, script(PASS, justified, PASS))
    assert len(outcome.refusals) == 1
    assert outcome.equal == {"public.t": 5, "public.other": 0}


@stack
@pytest.mark.usefixtures("impatient")
def test_unjustified_stop_of_a_table_fails_the_round(world: World) -> None:
    renamed = Act("rename", ("ALTER TABLE public.t RENAME COLUMN v TO w", "UPDATE public.t SET w = 'x'"))
    with pytest.raises(Broken, match=r"no act on public\.t justifies .*: column v was renamed to w"):
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
def test_planted_fault_is_found(world: World, name: str) -> None:
    played, how = FOUND[name]
    with planted(name), pytest.raises(Broken, match=how):
        play(replace(world, plant=name), played)

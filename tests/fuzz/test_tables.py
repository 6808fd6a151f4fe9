"""A few rounds of the fuzz of tables, and that it fails for what it is made to find."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from infra.stack import Stack
from tests.fuzz.acts import CATCH_UP, START, STOP, Act
from tests.fuzz.planted import PLANTS, planted
from tests.fuzz.rounds import play
from tests.fuzz.script import Script, draw
from tests.fuzz.world import Broken, World
from tests.producers.folding import read_topic
from tests.server_versions import MAJORS, NEWEST

pytestmark = pytest.mark.stack

SEEDS = (3,)
"""Of rounds that are short, and differ."""

MADE = [Act("make a table", (f"CREATE TABLE public.{name} (id int PRIMARY KEY, v text)",)) for name in ("t", "other")]
ROWS = Act("rows", ("INSERT INTO public.t SELECT i, 'v' FROM generate_series(1, 5) i",))


@pytest.fixture(scope="module")
def world(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(stack.postgres, stack.endpoints.bootstrap_servers, tmp_path_factory.mktemp("fuzz"))
    yield made
    made.close()


def script(*acts: Act) -> Script:
    tables = ("public.t", "public.other")
    return Script(0, "UTF8", (), tables, (*MADE, ROWS), (START, CATCH_UP, *acts, STOP), 3)


def test_a_round_is_the_same_for_its_seed_and_another_for_another() -> None:
    for version in MAJORS:
        assert draw(7, version) == draw(7, version)
        assert draw(7, version).described() != draw(8, version).described()


@pytest.mark.parametrize("seed", SEEDS)
def test_rounds_keep_every_promise(world: World, seed: int) -> None:
    outcome = play(world, draw(seed, NEWEST))
    assert sum(outcome.equal.values()) > 0


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong once is wrong."""
    monkeypatch.setattr("tests.fuzz.rounds._SETTLES", 0.0)
    monkeypatch.setattr("tests.fuzz.rounds._LOOKS", 1)


@pytest.mark.usefixtures("impatient")
def test_a_record_that_is_missing_fails(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.topics.read_topic", lambda settings, topic: read_topic(settings, topic)[:-1])
    with pytest.raises(Broken, match=r"public\.t: 5 rows in the table, 4 in the topic"):
        play(world, script())


@pytest.mark.usefixtures("impatient")
def test_a_table_that_was_stopped_for_nothing_that_happened_fails(world: World) -> None:
    renamed = Act("rename", ("ALTER TABLE public.t RENAME COLUMN v TO w", "UPDATE public.t SET w = 'x'"))
    with pytest.raises(Broken, match=r"nothing .* public\.t was a reason .*: column v is called w now"):
        play(world, script(renamed))


@pytest.mark.parametrize("name", PLANTS)
def test_what_mends_a_fault_is_still_where_it_can_be_taken_out(name: str) -> None:
    with planted(name):
        pass

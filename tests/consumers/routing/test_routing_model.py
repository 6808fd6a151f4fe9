"""Random histories of a mover and its readers: a repository is found at every moment, and no rule can be left out.

The readers use the real code (`Reading`, `homes`, `Placement`). The mover models the guarantees of `rehash_moves`:

- a copy is complete at the other home before the cursor passes its name, in either direction;
- the cursor passes a name when every repository that is cloned up to it at that moment is settled: copied, or given up
  after its tries;
- the old copy is removed `GRACE` after the cursor passed and the other copy was complete, and never if it is the only
  one.

New repositories are cloned meanwhile, at the home that the cloner's cursors had when it began.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Final

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from consumers.routing.lookup import NEVER, Cursor, Reading, homes
from consumers.routing.placement import Algorithm, Placement, order_key, partition_of
from tests.histories import TIMES, explore

GRACE: Final = 10.0
SURE: Final = GRACE / 2
"""How old a reading may be for a single home, and how long a request may take."""

PLACEMENT: Final = Placement(("a", "b", "c"))


def moving_names(count: int) -> list[str]:
    """Names of one partition that have two homes, in the order of the cursor."""
    names = (f"github.com/a/{number}" for number in range(100 * count))
    found = [name for name in names if partition_of(name) == 0 and len(homes(PLACEMENT, name, NEVER)) == 2]
    return sorted(found[:count], key=order_key)


NAMES: Final = moving_names(2)
ANY_NAME: Final = st.sampled_from(NAMES)
READERS: Final = st.integers(0, 1)


@dataclass
class Request:
    """A reader that looks for an existing repository: the nodes that it still has to ask, and its deadline."""

    name: str
    nodes: list[str]
    until: float


class Moves(RuleBasedStateMachine):
    """Two readers, which also clone, and one mover that may reverse at any time."""

    grace: ClassVar[float] = GRACE
    sure: ClassVar[float] = SURE
    asks: ClassVar[int] = 2

    @initialize(cloned=st.sets(ANY_NAME))
    def repositories_at_their_old_homes(self, cloned: Iterable[str]) -> None:
        self.now = 0.0
        self.forward = True
        self.passed = 0
        """How many of NAMES the cursor has passed."""
        self.crossed = dict.fromkeys(NAMES, self.now)
        """When the cursor last passed a name, in either direction."""
        self.nodes: dict[str, dict[str, float]] = {name: {self.old(name): self.now} for name in cloned}
        """Repository → node → the time at which its copy there was complete."""
        self.cloned_at = dict.fromkeys(cloned, self.now - 1)
        self.first_cloned = set(cloned)
        self.cloning: dict[str, str] = {}
        self.given_up: set[str] = set()
        self.astray: set[str] = set()
        """Cloned at a home that the cursor left meanwhile."""
        self.readings = [NEVER, NEVER]
        self.requests: list[Request] = []

    def old(self, name: str) -> str:
        return PLACEMENT.home(name, Algorithm.MD5)

    def new(self, name: str) -> str:
        return PLACEMENT.home(name, Algorithm.RENDEZVOUS)

    def home(self, name: str) -> str:
        """The home of a repository by the current cursor."""
        return self.new(name) if NAMES.index(name) < self.passed else self.old(name)

    def other(self, name: str) -> str:
        return self.old(name) if self.home(name) == self.new(name) else self.new(name)

    # The mover's rules.

    def listed(self) -> set[str]:
        return set(self.nodes)

    def settled(self, name: str, home: str) -> bool:
        return home in self.nodes[name] or name in self.given_up

    def removable(self, name: str) -> bool:
        copies = self.nodes[name]
        return self.home(name) in copies and self.now >= self.grace + max(self.crossed[name], copies[self.home(name)])

    # The steps. A step that is impossible at the moment does nothing.

    @rule(seconds=st.sampled_from((1.0, GRACE, GRACE)))
    def time_passes(self, seconds: float) -> None:
        for request in list(self.requests):
            while request in self.requests and request.until < self.now + seconds:
                self.ask(request)
        self.now += seconds

    @rule(name=ANY_NAME)
    def the_mover_copies(self, name: str) -> None:
        if name in self.nodes:
            self.nodes[name].setdefault(self.new(name) if self.forward else self.old(name), self.now)

    @rule(name=ANY_NAME)
    def the_mover_gives_up(self, name: str) -> None:
        if len(self.nodes.get(name, ())) == 1:
            self.given_up.add(name)

    @rule(turns=st.sampled_from((False, False, False, True)))
    def the_cursor_passes_a_name(self, turns: bool) -> None:
        self.forward ^= turns
        if self.passed < len(NAMES) if self.forward else self.passed > 0:
            name = NAMES[self.passed if self.forward else self.passed - 1]
            if name not in self.listed() or self.settled(name, self.other(name)):
                self.passed += 1 if self.forward else -1
                self.crossed[name] = self.now

    @rule()
    def the_mover_removes_what_was_left(self) -> None:
        for name in filter(self.removable, self.nodes):
            self.nodes[name].pop(self.other(name), None)

    @rule(reader=READERS)
    def a_reader_reads_the_cursors(self, reader: int) -> None:
        upto = order_key(NAMES[self.passed - 1]) if self.passed else None
        self.now += 0.01  # earlier clones are older
        self.readings[reader] = Reading(self.now, {0: Cursor(upto, finished=self.passed == len(NAMES))})

    @rule(reader=READERS, name=ANY_NAME, slowly=st.booleans())
    def a_reader_clones(self, reader: int, name: str, slowly: bool) -> None:
        reading = self.readings[reader]
        if name not in self.cloning | self.nodes and self.now - reading.asked_at <= SURE:
            self.cloning[name] = homes(PLACEMENT, name, reading)[0]
            if slowly:
                return
        if name in self.cloning:
            node = self.cloning.pop(name)
            self.nodes[name] = {node: self.now}
            self.cloned_at[name] = self.now
            if node != self.home(name):
                self.astray.add(name)

    @rule(reader=READERS, name=ANY_NAME)
    def a_reader_begins_to_look(self, reader: int, name: str) -> None:
        if name in self.nodes:
            nodes = homes(PLACEMENT, name, self.readings[reader])[: self.asks]
            self.requests.append(Request(name, list(nodes), self.now + SURE))

    @rule()
    def a_reader_continues_to_look(self) -> None:
        for request in self.requests[:1]:
            self.ask(request)

    # The invariants.

    def ask(self, request: Request) -> None:
        node = request.nodes.pop(0)
        if node in self.nodes[request.name]:
            self.requests.remove(request)
        else:
            assert request.nodes, f"{request.name} was not found"

    @invariant()
    def existing_repository_is_found(self) -> None:
        for reading, (name, copies) in itertools.product(self.readings, self.nodes.items()):
            asked = homes(PLACEMENT, name, reading)[: self.asks]
            assert not copies.keys().isdisjoint(asked), f"{name} was not found"

    @invariant()
    def the_first_answer_is_right(self) -> None:
        """With a reading that is not too old, for a repository that existed then and was not cloned at a left home."""
        for reading, name in itertools.product(self.readings, self.nodes.keys() - self.astray - self.given_up):
            if self.now - reading.asked_at <= self.sure and self.cloned_at[name] < reading.asked_at:
                assert homes(PLACEMENT, name, reading)[0] in self.nodes[name], f"{name} was not at its home"


class PassesBeforeTheCopy(Moves):
    def settled(self, name: str, home: str) -> bool:
        return name in self.nodes or super().settled(name, home)


class ListsOnce(Moves):
    """It lists the repositories cloned when it began, but not later ones."""

    def listed(self) -> set[str]:
        return self.first_cloned


class RemovesAtOnce(Moves):
    grace = 0.0


class RemovesWhatWasGivenUp(Moves):
    def removable(self, name: str) -> bool:
        return super().removable(name) or (name in self.given_up and self.now >= self.crossed[name] + self.grace)


class AsksOnce(Moves):
    asks = 1


class TrustsOldCursors(Moves):
    sure = 100 * SURE


def test_repository_is_found_at_every_moment() -> None:
    explore(Moves, 200 * TIMES, steps=50)


@pytest.mark.long
@pytest.mark.parametrize(
    "without", [PassesBeforeTheCopy, ListsOnce, RemovesAtOnce, RemovesWhatWasGivenUp, AsksOnce, TrustsOldCursors]
)
def test_every_rule_is_necessary(without: type[Moves]) -> None:
    with pytest.raises(AssertionError, match=r"was not (found|at its home)"):
        explore(without, 3000, steps=50)

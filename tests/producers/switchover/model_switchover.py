"""A model of two databases and the switchover command, with the real rules: explores every reachable state.

The database `first` has two gitlab schemas, a standby `copy`, which is to become `second`, and another standby,
`spare`, which may take first's place. Each standby replays first's commits in order, later or never. The command may
be started for any gitlab schemas and with any server at either end, killed between any two of its steps, and restarted;
it uses the real rules, with the locks and proofs of `Switchover` around them. Applications write on the server that
owns a gitlab schema.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any, Final, NamedTuple
from uuid import UUID

from infra.postgres.control import Owner
from producers.switchover import rules
from producers.switchover.endpoints import Changes, Move, Side, View
from producers.switchover.rules import Step

MAIN, CI = "gitlab_main", "gitlab_ci"
BOTH: Final = (MAIN, CI)
NAMED: Final = tuple(each for size in (1, 2) for each in combinations(BOTH, size))
FIRST, SECOND = "first", "second"

WRITES: Final = {FIRST: 1, SECOND: 2}
"""The largest number of writes to a gitlab schema."""
SERVERS: Final = ("nothing", "first", "copy", "spare", "zombie")
ENDS: Final = tuple(
    (source, destination)
    for source in ("first", "zombie")
    for destination in ("copy", "first", "zombie", "promoted", "foreign")
    if (source, destination) != ("zombie", "zombie")
)
"""The servers to which the two dsns may lead, right or wrong."""

Items = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A server's data: headrace's rows, and the number of writes to each gitlab schema; interned by `rows`."""

    name: str
    owners: Items
    records: Items
    written: Items

    def side(self, *, standby: bool) -> Side:
        return Side(self.name, standby, dict(self.owners), "1", dict(self.records))

    def changed(self, changes: Changes) -> Rows:
        side = rules.apply(self.side(standby=False), changes)
        return rows(str(side.name), items(side.owners), items(side.records), self.written)

    def write(self, gitlab_schema: str) -> Rows:
        written = dict(self.written)
        return rows(self.name, self.owners, self.records, items({**written, gitlab_schema: written[gitlab_schema] + 1}))

    def opens(self, gitlab_schema: str) -> bool:
        owner: Owner = dict(self.owners)[gitlab_schema]
        return owner.name == self.name


@cache
def rows(name: str, owners: Items, records: Items, written: Items) -> Rows:
    return Rows(name, owners, records, written)


def items(mapping: Any) -> Items:
    return tuple(sorted(mapping.items()))


START: Final = rows(FIRST, items({each: Owner(FIRST, 1) for each in BOTH}), (), items(dict.fromkeys(BOTH, 0)))


@dataclass(frozen=True, slots=True, eq=False)
class Server:
    """A server; `behind` is what it still has to replay, oldest first. Created by `server`."""

    rows: Rows
    standby: bool
    follows: bool
    behind: tuple[Rows, ...]


@cache
def server(rows: Rows, standby: bool = False, follows: bool = False, behind: tuple[Rows, ...] = ()) -> Server:
    return Server(rows, standby, follows, behind)


STRANGERS: Final = {
    # Promoted before any of this, or a standby of such a one: they have first's name and system identifier.
    "promoted": server(START),
    "foreign": server(START, standby=True),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """The command's decision for the state of both sides: the next step, and the old side after --abort."""

    seen: View
    step: Step | None
    taken_back: Rows | None


@cache
def choice(named: tuple[str, ...], old: Server, new: Server, same_server: bool, slot: bool) -> Choice:
    left, right = old.rows.side(standby=old.standby), new.rows.side(standby=new.standby)
    seen = View(Move(named, FIRST, SECOND), left, right, same_server, slot and not new.standby)
    step = rules.next_step(seen)
    back = None if rules.refused_abort(seen) else old.rows.changed(rules.taking_back(seen))
    return Choice(seen, step if isinstance(step, Step) else None, None if back is old.rows else back)


# Tuples: hundreds of thousands of both are copied, hashed and compared.
class Command(NamedTuple):
    """A run between two steps: it has confirmed the preconditions of `step`; `writes` is set once it has looked."""

    named: tuple[str, ...]
    source: str
    destination: str
    step: Step
    writes: Rows | None = None


class World(NamedTuple):
    """One state. `zombie` is an old primary that is back; `slot` is second's producer's: none, incomplete, ready.

    `ghost` is a run that lost its session on the old side, while its session on the copy is still to write.
    """

    first: Server
    copy: Server | None
    spare: Server | None
    zombie: Server | None = None
    slot: str = "none"
    command: Command | None = None
    ghost: Command | None = None
    closes: int = 0

    def at(self, name: str) -> Server | None:
        found: Server | None = STRANGERS[name] if name in STRANGERS else getattr(self, name)
        return found

    def put(self, name: str, changed: Server | None) -> World:
        changes: dict[str, Any] = {name: changed}
        return self._replace(**changes)

    def commit(self, name: str, written: Rows) -> World:
        """Return the world after a server has written; its followers will replay that."""
        writer = self.at(name)
        if writer is None or writer.standby or writer.rows is written or name in STRANGERS:
            return self
        world = self.put(name, server(written))
        for each in ("copy", "spare") if name == "first" else ():
            other = world.at(each)
            if other is not None and other.follows:
                world = world.put(each, server(other.rows, True, True, (*other.behind, written)))
        return world

    @property
    def keeps_zombie(self) -> bool:
        """Whether a returned old primary became second: the next old primary then needs another place."""
        return self.zombie is not None and any(record.claim for _, record in self.zombie.rows.records)

    def failed_over(self, name: str) -> World:
        """Return the world in which a standby takes first's place, perhaps without its last commits; first is back."""
        left = "copy" if name == "spare" else "spare"
        taken, other = self.at(name), self.at(left)
        assert taken is not None
        if other is not None and other.follows:
            more = len(other.behind) - len(taken.behind)
            other = server(other.rows, True, more >= 0, other.behind[: max(0, more)])
        ghost = self.command if self.command is not None and self.command.writes is not None else None
        world = self._replace(first=server(taken.rows), zombie=server(self.first.rows), command=None, ghost=ghost)
        return world.put(name, None).put(left, other)


class Model:
    """The steps of a world; `without` are the command's rules that are left out."""

    def __init__(
        self,
        without: frozenset[str] = frozenset(),
        *,
        ends: Iterable[tuple[str, str]] = ENDS,
        closes: int = 1,
    ) -> None:
        """`closes` is the largest number of closes, so that the histories are finite."""
        self.without = without
        self.ends = tuple(ends)
        self._closes = closes

    def following(self, world: World) -> Iterator[World]:
        yield from self._environment(world)
        yield from self._commands(world)

    def look(self, world: World, named: tuple[str, ...], source: str, destination: str) -> Choice | None:
        """Return what the command would do; None: one of the two does not answer."""
        old, new = world.at(source), world.at(destination)
        if old is None or new is None:
            return None
        same = source == destination and "two servers" not in self.without
        ready = world.slot == "made" or ("position of the slot" in self.without and world.slot == "half made")
        return choice(named, old, new, same, ready)

    def _environment(self, world: World) -> Iterator[World]:
        for name in ("copy", "spare"):
            standby = world.at(name)
            if standby is not None and standby.behind:
                yield world.put(name, server(standby.behind[0], True, True, standby.behind[1:]))
        if world.copy is not None and world.copy.standby:
            yield world.put("copy", server(world.copy.rows))  # promoted, by any process
        for name in ("copy", "spare"):
            standby = world.at(name)
            if standby is not None and standby.follows and not world.keeps_zombie:
                yield world.failed_over(name)
        if world.slot == "half made":
            yield world._replace(slot="made")
        for name, own in (("first", FIRST), ("copy", SECOND)):
            writer = world.at(name)
            if writer is None or writer.standby or writer.rows.name != own:
                continue
            if writer.rows.opens(MAIN) and dict(writer.rows.written)[MAIN] < WRITES[own]:
                yield world.commit(name, writer.rows.write(MAIN))

    # -- the command ------------------------------------------------------------------------------------------------

    def _commands(self, world: World) -> Iterator[World]:
        if world.ghost is not None:
            yield self._opened(world._replace(ghost=None), world.ghost)
            yield world._replace(ghost=None)
        if world.command is not None:
            yield world._replace(command=None)  # killed
            yield self._continued(world._replace(command=None), world.command)
            return
        for source, destination in self.ends:
            for named in NAMED:
                found = self.look(world, named, source, destination)
                if found is not None:
                    yield from self._begun(world, found, source, destination)

    def _begun(self, world: World, found: Choice, source: str, destination: str) -> Iterator[World]:
        """A run that starts or continues, and has confirmed the next step's preconditions; or an --abort."""
        if found.taken_back is not None and self._follows(world, source, destination):
            yield world.commit(source, found.taken_back)
        step = found.step
        if step in (None, Step.REPLAY) or (step is Step.CLOSE and world.closes == self._closes):
            return
        if step is not Step.SLOT and not self._confirmed(world, source, destination):
            return
        if "one at a time" not in self.without:
            world = world._replace(ghost=None)  # ended
        yield world._replace(command=Command(found.seen.move.gitlab_schemas, source, destination, step))

    def _follows(self, world: World, source: str, destination: str) -> bool:
        """Whether the other server, if it is a standby, receives what this one writes now."""
        new = world.at(destination)
        if new is None or not new.standby or "following" in self.without:
            return True
        return source == "first" and new.follows

    def _confirmed(self, world: World, source: str, destination: str) -> bool:
        """Whether the copy, if it is a standby, and every other standby that the old side knows have all its WAL."""
        new = world.at(destination)
        if not self._follows(world, source, destination) or (new is not None and new.behind):
            return False
        if "every standby" in self.without:
            return True
        if source == "zombie":
            # It has the slot of the server that replaced it, which is disconnected, unless that one is to be the copy.
            return destination == "first"
        others = [world.at(name) for name in ("copy", "spare") if name != destination]
        return not any(each and each.follows and each.behind for each in others)

    def _continued(self, world: World, command: Command) -> World:
        if command.writes is not None:
            return self._opened(world, command)
        found = self.look(world, command.named, command.source, command.destination)
        if found is None or ("looks again" not in self.without and found.step is not command.step):
            return world
        seen = found.seen
        old, new = world.at(command.source), world.at(command.destination)
        assert old is not None
        assert new is not None
        match command.step:
            case Step.CLOSE:
                world = world._replace(closes=world.closes + 1)
                number = 0 if "id of the move" in self.without else world.closes
                changes = rules.closing(seen, lambda: UUID(int=number))
                world = world.commit(command.source, old.rows.changed(changes))
            case Step.PROMOTE if command.destination == "copy":
                world = world.put("copy", server(new.rows))
            case Step.SLOT:
                world = world._replace(slot="half made" if world.slot == "none" else "none")
            case Step.CLAIM:
                number = 0 if "claim" in self.without else SERVERS.index(command.destination)
                changes = rules.claiming(seen, lambda: UUID(int=number))
                world = world.commit(command.destination, new.rows.changed(changes))
            case Step.RELEASE:
                world = world.commit(command.source, old.rows.changed(rules.releasing(seen)))
            case Step.OPEN:
                written = new.rows.changed(rules.opening(seen, ()))
                world = world._replace(command=command._replace(writes=written))
        return world

    def _opened(self, world: World, command: Command) -> World:
        """The opening commit, by a session that is still alive, whatever happened to the other end."""
        assert command.writes is not None
        return world.commit(command.destination, command.writes)


# -- what must hold --------------------------------------------------------------------------------------------------


def owners_of(world: World, gitlab_schema: str) -> list[str]:
    """Return the servers that own it: the one in first's place under that name, any other under second's."""
    places = (("first", FIRST), ("copy", SECOND), ("zombie", SECOND))
    return [
        place
        for place, name in places
        if (found := world.at(place))
        and not found.standby
        and found.rows.name == name
        and found.rows.opens(gitlab_schema)
    ]


def require_right(world: World) -> None:
    """Raise AssertionError unless each gitlab schema has at most one owner, with its current rows and its slot."""
    for each in BOTH:
        found = owners_of(world, each)
        assert len(found) <= 1, f"{each} is open on {' and '.join(found)}"
        if found and found != ["first"]:
            owner = world.at(found[0])
            assert owner is not None
            # All that first wrote before the close, as the server in its place now has it.
            there, here = dict(owner.rows.written)[each], dict(world.first.rows.written)[each]
            assert there >= here, f"{each} is open with stale rows on {found[0]}"
            assert world.slot == "made", f"{each} is open without a slot"


def explore(model: Model) -> dict[World, World | None]:
    """Return every reachable state, each with its predecessor; raises AssertionError with the path."""
    start = World(server(START), server(START, True, True), server(START, True, True))
    found: dict[World, World | None] = {start: None}
    waiting = deque([start])
    while waiting:
        world = waiting.popleft()
        for after in model.following(world):
            if after not in found:
                found[after] = world
                try:
                    require_right(after)
                except AssertionError as error:
                    error.add_note("\n".join(map(str, way_to(after, found))))
                    raise
                waiting.append(after)
    return found


def way_to(world: World | None, found: dict[World, World | None]) -> list[World]:
    way = []
    while world is not None:
        way.append(world)
        world = found[world]
    return way[::-1]

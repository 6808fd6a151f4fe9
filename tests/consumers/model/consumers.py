"""Consumers and retries on a model server: the real Applying, Planner, Settler and Ends, and stand-ins."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from consumers.dead_letters import settle
from consumers.delivery.dead_letter_topic import Entry, NewDeadLetter
from consumers.delivery.topic_identity import TopicRecreated
from consumers.ledger.error_policy import Action, Rule
from consumers.ledger.progress import Place
from consumers.planning.planner import Planner
from consumers.runtime.applying import Applying
from consumers.runtime.catch_up import Ends
from consumers.runtime.parts import Parts
from infra.state.history import Actor
from schemas.positions import Offset
from tests.consumers.model.session import Connection, ModelLedger
from tests.consumers.model.target import ModelServer
from tests.consumers.model.topic import MIGRATION, SCHEMA, Record
from tests.consumers.model.world import Stuck, World


@dataclass
class _Position:
    next_offset: int


@dataclass
class Positions:
    """A stand-in for LedgerPositions."""

    run: int = 0


class Consumer:
    """A process: a stand-in for Group, DeadLetterWriter, Pacing and the runtime."""

    limit = 2

    def __init__(self, world: World, server: ModelServer) -> None:
        self.world, self.server = world, server
        self.positions: dict[Place, Offset] = {}
        self.aside: set[Place] = set()
        self.batch: list[Record] = []
        self.topic_id = ""
        self.busy = False
        self.generation = 0
        self.connection = Connection(world, server)
        self.name = str(server.state["control"]["name"])
        self.ends = Ends(world, ("t",))  # type: ignore[arg-type]
        this: Any = self
        parts = Parts(
            migration=MIGRATION, database=self.name, topics=("t",),
            planner=Planner(MIGRATION, lambda _: SCHEMA, self.name), ledger=ModelLedger(world),  # type: ignore[arg-type]
            group=this, target=this, positions=Positions(), dead_letter_writer=this, pacing=this, breaker=this,  # type: ignore[arg-type]
            throttle=this, working=this, completion=this, prepare=this,
        )  # fmt: skip
        self.applying = Applying(parts, this, this)
        self.applying._ahead.close()
        self.applying._ahead = this

    # Of the group and the runtime.

    def assign(self, places: Sequence[Place]) -> None:
        """Open the ledger in the current run; see Ledger.open and Consumer._assigned."""
        self.generation += 1
        run = self.applying._ledger_positions.run = self.server.state["control"]["run"]
        tx = self.server.begin()
        for place in places:
            if (run, place) not in self.server.state["ledger"] and not self.server.locked(tx, "ledger", (run, place)):
                tx.write("ledger", (run, place), (0, self.world.topic.id))
        self.server.commit(tx)
        self.aside.clear()
        self.positions.clear()
        self.topic_id = self.world.topic.id
        for place in places:
            if (entry := self.server.state["ledger"].get((run, place))) is None:
                raise Stuck
            if entry[1] != self.topic_id and "id of the topic" not in self.world.without:
                raise TopicRecreated("t")
            self.positions[place] = Offset(entry[0])

    def proceed(self, _rest: float) -> bool:
        """Continue immediately."""
        return True

    def recover(self, error: Exception, rule: Rule, attempt: int) -> bool:
        if rule.action is Action.RETRY:
            if attempt > 2:
                raise Stuck
            return True
        if rule.action in (Action.REPOSITION, Action.HOLD, Action.RECONNECT):
            self.assign(list(self.positions))
            return False
        raise error

    def read(self) -> None:
        """Read the next records of all partitions that do not wait."""
        if self.topic_id != self.world.topic.id and "id of the topic" not in self.world.without:
            raise TopicRecreated("t")
        topic, self.batch = self.world.topic, []
        for place, position in self.positions.items():
            if place not in self.aside:
                found = [record for at, record in topic.records[place].items() if at >= position][:3]
                last = found[-1].at + 1 if found else position
                if not any(at >= last for at in topic.records[place]):
                    found.append(Record(place, max(topic.ends[place], last)))
                self.batch += found

    def process(self) -> None:
        batch, self.batch = self.batch, []
        self.applying.process(batch)  # type: ignore[arg-type]

    def caught_up(self) -> bool:
        """Commit, as the runtime does, after a check."""
        self.ends._next_check = 0.0
        run = self.applying.run
        ledger = {place: _Position(value[0]) for (of, place), value in self.server.state["ledger"].items() if of == run}
        return self.ends.reached(self.positions, lambda: ledger)  # type: ignore[return-value,arg-type]

    # What Applying asks of its parts.

    def of(self, items: Iterator[Any]) -> Iterator[Any]:
        yield from items

    def rest(self) -> None:
        """No prefetch."""

    def set_aside(self, place: Place, offset: Offset) -> None:
        del offset
        self.aside.add(place)

    def keep(self, dead_letters: Sequence[NewDeadLetter], run: int) -> None:
        self.world.step()
        if "dead letter before the ledger advances" not in self.world.without:
            for each in dead_letters:
                self.world.kept[(each.place, each.offset, self.world.run_in_key(run))] = (run, each.value)
        self.world.step()
        if "dead letters of the transaction of the ledger" in self.world.without:
            tx = self.server.begin()
            for each in dead_letters:
                tx.write("letters", (run, each.place, each.offset), "open")
            self.server.commit(tx)

    def done(self, changes: int, seconds: float) -> float:
        del changes, seconds
        return 0.0

    def wait(self, seconds: float) -> bool:
        del seconds
        self.world.step()
        return False

    def is_set(self) -> bool:
        return False

    def _nothing(self, *_: object) -> None:
        pass

    commit = look = timed_out = _nothing


def retry(world: World, server: ModelServer) -> None:
    """Retry every dead letter once, as `retries.retry` does."""
    name = str(server.state["control"]["name"])
    planner = Planner(MIGRATION, lambda _: SCHEMA, name)
    connection: Any = Connection(world, server)
    lock: Any = contextlib.nullcontext()
    lock.hold = lambda _: None
    settler = settle._Settler(
        MIGRATION,
        name,
        server.state["control"]["run"],
        lambda entry: planner.judge(entry.value or b""),
        lock,
        Actor("the model"),
    )
    for run, place, offset in [key for key, state in server.state["letters"].items() if state == "open"]:
        found = world.kept.get((place, offset, world.run_in_key(run)))
        assert found is not None, f"the event of dead letter {place}@{offset} of run {run} is gone"
        entry = Entry(name, place, Offset(offset), run, "", None, found[1])  # type: ignore[arg-type]
        outcome, _ = settler.settle(connection, entry)
        if outcome is settle.Outcome.APPLIED and "late removal" in world.without:
            world.kept.pop((place, offset, world.run_in_key(run)))

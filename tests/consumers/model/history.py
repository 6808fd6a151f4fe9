"""One random history of an application, a producer, consumers, operators and failovers."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any, Final

from tests.consumers.model.consumers import Consumer, retry
from tests.consumers.model.target import ModelServer, Transaction
from tests.consumers.model.topic import KEYS, PLACES, Event, Topic
from tests.consumers.model.world import Failure, Stuck, World

_STEPS: Final = 150


class History:
    """One random history; at its end everything settles, and the result must be correct."""

    def __init__(self, seed: int, without: frozenset[str] = frozenset()) -> None:
        self.world = World(random.Random(seed), without)
        self.draw = self.world.draw
        self.world.act = self.act
        self.numbers = iter(range(1, 1_000_000))
        if self.draw.random() < 0.5:
            self.poison()
        self.open: list[Transaction] = []
        self.live: dict[Any, Consumer] = {}
        """Partition → its assigned consumer; all others are zombies."""
        choices: list[tuple[Callable[[], None], float]] = [
            (self.write, 7), (self.end, 6), (self.replicate, 2), (self.publish, 2), (self.deliver, 6), (self.start, 3),
            (self.learn, 1), (self.read, 2), (self.process, 3), (self.work, 14), (self.bring_back, 3), (self.retry, 4),
            (self.remove, 2), (self.poison, 3), (self.pause, 0.5), (self.resume, 3), (self.replay, 0.5),
            (self.recreate, 0.1), (self.switchover, 0.2), (self.fail_over, 0.7), (self.standby, 0.5),
            (self.caught_up, 1),
        ]  # fmt: skip
        self._actions = [action for action, _ in choices]
        # Each history has its own weights, so that rare events coincide.
        self._weights = [weight * self.draw.choice((0.3, 1, 1, 4)) for _, weight in choices]

    def play(self) -> None:
        for _ in range(_STEPS):
            self.act()
        self.come_to_rest()

    def act(self) -> None:
        self.draw.choices(self._actions, self._weights)[0]()
        if not self.world.depth:
            self.world.require_letters()

    # The application and its database.

    def write(self) -> None:
        """Write rows in a new transaction, or in one that is open; it may be committed at once."""
        server = self.world.server
        self.open = [tx for tx in self.open if tx in server.running]
        idle = [tx for tx in self.open if tx not in server.wal]
        tx = self.draw.choice(idle) if idle and self.draw.random() < 0.3 else server.begin()
        if tx not in self.open:
            self.open.append(tx)
        for key in self.draw.sample(KEYS, self.draw.randint(1, 2)):
            if not server.locked(tx, "rows", key):
                state = self.draw.choice(("wanted", "wanted", "wanted", "other", None))
                tx.write("rows", key, state)
                # Its event may be corrupt: it becomes a dead letter, and is discarded at the end.
                shown = "nonsense" if state == "other" and self.draw.random() < 0.2 else state
                event = Event(next(self.numbers), key, shown, tx)
                self.world.events[event.number] = event
        if self.draw.random() < 0.8:
            server.log(tx)
            if self.draw.random() < 0.4:
                server.end(tx)

    def end(self) -> None:
        """A commit becomes visible, or an open transaction is committed or rolled back."""
        server = self.world.server
        mine = [tx for tx in server.running if tx in self.open or tx in server.wal]
        if mine:
            tx = self.draw.choice(mine)
            if tx not in server.wal and self.draw.random() < 0.8:
                server.log(tx)
            else:
                server.end(tx)

    def replicate(self) -> None:
        server = self.world.server
        server.replicated = min(len(server.wal), server.replicated + self.draw.randint(1, 6))

    def publish(self) -> None:
        self.world.publish(self.draw.randint(1, 4))

    def deliver(self) -> None:
        """The standby and the topic have caught up."""
        self.world.server.replicated = len(self.world.server.wal)
        self.world.publish(100)

    def standby(self) -> None:
        self.world.standby_away = not self.world.standby_away

    def fail_over(self) -> None:
        self.world.server.fail_over()

    def poison(self) -> None:
        """A constraint rejects changes of some rows, or is dropped."""
        self.world.poison = set() if self.world.poison else set(self.draw.sample(KEYS, 2))

    # Operators. They take the fence's locks exclusively, so they wait for running transactions: here they come later.

    def _alone(self, **values: Any) -> bool:
        server = self.world.server
        if server.shared:
            return False
        tx = server.begin()
        for key, value in values.items():
            tx.write("control", key, value)
        server.commit(tx)
        return True

    def pause(self) -> None:
        self._alone(paused=True)

    def resume(self) -> None:
        self._alone(paused=False)

    def replay(self) -> None:
        """Start a new run after every consumer has left the group: those that remain are zombies."""
        self.live.clear()
        self._alone(run=self.world.server.state["control"]["run"] + 1)

    def recreate(self) -> None:
        """The topic is recreated from a snapshot of the table that sees all published changes."""
        world = self.world
        rows: dict[int, Event] = {}
        published = world.server.wal[: world.published]
        if not world.server.visible.issuperset(published):
            return
        for tx in published:
            rows.update({event.key: event for event in world.events.values() if event.transaction is tx})
        world.topic = Topic(int(world.topic.id) + 1)
        world.topics[world.topic.id] = world.topic
        for before in rows.values():
            if before.state not in (None, "nonsense"):
                event = Event(next(self.numbers), before.key, before.state, before.transaction)
                world.events[event.number] = event
                world.append(event, read=True)
        world.topic.mark()

    def switchover(self) -> None:
        """The gitlab schema moves to a promoted copy. The old server stays, and so do its consumers."""
        world, old = self.world, self.world.server
        if world.active == "first" and self._alone(owner="second"):
            for tx in [tx for tx in old.running if tx not in old.wal]:
                old.end(tx)
            while world.published < len(old.wal):
                old.replicated = len(old.wal)
                world.publish(100)
            world.servers["second"] = ModelServer("second", list(old.wal))
            world.active = "second"
            self._alone(name="second")
            world.server.replicated = len(world.server.wal)
            self.live.clear()

    # Consumers.

    def _idle(self) -> list[Consumer]:
        return [each for each in self.world.consumers if not each.busy]

    def _run(self, consumer: Consumer, *steps: Callable[[], object]) -> None:
        """Let a consumer act; an error or a kill removes it."""
        consumer.busy = True
        try:
            for step in steps:
                step()
        except Stuck:
            consumer.batch = []
            self._run(consumer, lambda: consumer.assign(list(consumer.positions)))
        except Failure:
            self.world.consumers.remove(consumer)
        finally:
            consumer.busy = False

    def start(self) -> None:
        """A consumer joins and gets some partitions; their previous owners do not know yet."""
        if len(self.world.consumers) < 4:
            consumer = Consumer(self.world, self.world.server)
            self.world.consumers.append(consumer)
            places = self.draw.sample(PLACES, self.draw.randint(1, 2))
            self.live.update(dict.fromkeys(places, consumer))
            self._run(consumer, lambda: consumer.assign(places))

    def learn(self) -> None:
        """A consumer receives its assignment."""
        for consumer in self._idle():
            mine = [place for place, owner in self.live.items() if owner is consumer]
            consumer.batch = []
            self._run(consumer, lambda consumer=consumer, mine=mine: consumer.assign(mine))  # type: ignore[misc]

    def read(self) -> None:
        if idle := self._idle():
            consumer = self.draw.choice(idle)
            if not consumer.batch:
                self._run(consumer, consumer.read)

    def process(self) -> None:
        if idle := self._idle():
            consumer = self.draw.choice(idle)
            self._run(consumer, consumer.process)

    def work(self) -> None:
        if idle := self._idle():
            consumer = self.draw.choice(idle)
            self._run(consumer, *((consumer.read,) if not consumer.batch else ()), consumer.process)

    def bring_back(self) -> None:
        """Waiting partitions are read again, perhaps too soon."""
        for consumer in self._idle():
            consumer.aside.clear()

    def caught_up(self) -> None:
        if idle := self._idle():
            consumer = self.draw.choice(idle)
            current = consumer.server is self.world.server and (
                consumer.applying.run == consumer.server.state["control"]["run"]
            )
            if current and consumer.positions and consumer.topic_id == self.world.topic.id and consumer.caught_up():
                self.require_settled(consumer.ends._ends)

    def require_settled(self, wanted: Any) -> None:
        server = self.world.server
        run = server.state["control"]["run"]
        for place, end in wanted.items():
            at = server.state["ledger"].get((run, place), (0, ""))[0]
            assert at >= end, f"said to be caught up, but {place} is at {at} of {end}"

    # Dead letters.

    def retry(self) -> None:
        with contextlib.suppress(*Failure):
            retry(self.world, self.world.server)

    def remove(self) -> None:
        """Remove the events of dead letters settled so long ago that no failover reopens them."""
        world, server = self.world, self.world.server
        safe = {
            key
            for tx in server.wal[: server.replicated]
            for table, key, value in tx.writes
            if table == "letters" and value != "open" and server.state["letters"].get(key) == value
        }
        gone = [where for where, (run, _) in world.kept.items() if (run, *where[:2]) in safe]
        for _ in range(3):
            try:
                world.step()
            except Failure:
                return
        for where in gone:
            world.kept.pop(where, None)

    # The end.

    def come_to_rest(self) -> None:
        world = self.world
        world.quiet, world.standby_away, world.poison = True, False, set()
        server = world.server
        for tx in list(server.running):
            server.end(tx)
        self.resume()
        for _ in range(6):
            server.replicated = len(server.wal)
            world.publish(10_000)
            run = server.state["control"]["run"]
            topics = {server.state["ledger"].get((run, place), (0, world.topic.id))[1] for place in PLACES}
            if topics != {world.topic.id} and "id of the topic" not in world.without:
                self.replay()
            consumer = Consumer(world, server)
            consumer.assign(PLACES)
            for _ in range(200):
                consumer.read()
                if all(record.event is None for record in consumer.batch):
                    break
                consumer.process()
            consumer.process()
        retry(world, server)
        assert consumer.caught_up()
        self.require_settled(world.topic.ends)
        world.require_letters()
        self.require_done(server)

    def require_done(self, server: ModelServer) -> None:
        left = [key for key, state in server.state["rows"].items() if state == "wanted"]
        assert not left, f"rows {left} are wanted, and never changed"
        for (run, place, offset), state in server.state["letters"].items():
            topic = self.world.topics[server.state["ledger"][(run, place)][1]]
            found = topic.records[place].get(offset)
            event = found.event if found else None
            assert event is not None, f"dead letter {place}@{offset} of run {run} is of no event"
            if event.state == "nonsense":
                continue
            assert state != "open", f"dead letter {place}@{offset} of run {run} is left"
            done = (run, event.number) in server.state["applied"] or state == "replaced"
            assert done, f"dead letter {place}@{offset} of run {run} is settled, and was never applied"

"""Troubles of a switchover that is not complete: each is one action of an operator, or one failure of a machine.

A trouble does not clean up after itself; a broken promise is noted as a fault here, or found in the history.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

import psycopg

from tests.chaos.both_sides import SHARED, TABLES
from tests.chaos.forked import Command
from tests.chaos.server_pairs import Server
from tests.chaos.switchover_world import Move, World, changed

STEPS: Final = ("close", "replay", "promote", "slot", "open")
AFTERWARDS: Final = ("abort", "wrong schemas", "wrong end", "status", "run killed", "one too few", "frozen")
"""What can still happen once a move is complete."""
_RUN_SECONDS: Final = 1.2
"""About how long an undisturbed switchover runs: kills are drawn from a slightly longer time."""
_PREPARED: Final = "in the way of a slot"


class Troubles:
    """What can happen to the moves of one run; `wrong_ends` are servers that no move may lead to."""

    def __init__(self, world: World, wrong_ends: dict[str, Server]) -> None:
        self._world = world
        self._draw = world.draw
        self._wrong_ends = wrong_ends
        self._kinds: dict[str, tuple[float, Callable[[Move], None]]] = {
            "run killed": (4.0, self._run_killed),
            "run stopped by SIGTERM": (1.0, self._run_terminated),
            "run with a short timeout": (0.7, self._run_short),
            "abort": (1.5, self._abort),
            "abort killed": (1.0, self._abort_killed),
            "wrong end": (1.5, self._wrong_end),
            "wrong schemas": (1.5, self._wrong_schemas),
            "status": (0.5, self._status),
            "held transaction": (0.8, self._held),
            "prepared transaction": (1.2, self._prepared),
            "standby away": (0.8, self._standby_away),
            "primary away": (0.6, self._primary_away),
            "one too few": (0.5, self._one_too_few),
            "two at once": (0.8, self._two_at_once),
            "frozen": (0.8, self._frozen),
            "cleanup": (0.4, self._cleanup),
        }

    def make(self, move: Move, kinds: Sequence[str] = ()) -> None:
        """Make one trouble, drawn from all or from `kinds`."""
        chosen = {kind: self._kinds[kind][0] for kind in kinds or self._kinds}
        (kind,) = self._draw.choices(list(chosen), list(chosen.values()))
        self._world.story[kind] += 1
        self._world.note(kind)
        self._kinds[kind][1](move)

    def complete(self, move: Move, tries: int = 8) -> bool:
        """Run the switchover until it is complete; a move that cannot be completed is a fault."""
        world = self._world
        message = ""
        for _ in range(tries):
            command = world.switchover(move)
            if world.ended(command, "an undisturbed switchover") == 0:
                self._require_owner(move, move.destination, "the switchover reported success")
                return True
            message = command.message
            time.sleep(0.2)
        world.fault("cannot be completed", f"{move}: {message}")
        return False

    def _require_owner(self, move: Move, owner: str, after: str) -> None:
        seen = self._world.sight(owner)
        open_ = not seen.standby and seen.name == owner
        for gitlab_schema in move.gitlab_schemas:
            if not open_ or seen.owners[gitlab_schema][0] != owner:
                self._world.fault("reported open but is not", f"{after}: {gitlab_schema} on {owner}: {seen}")

    # Ways in which the command itself ends.

    def _run_killed(self, move: Move) -> None:
        command = self._world.switchover(move)
        self._at_some_moment(command)
        command.send(signal.SIGKILL)
        self._world.ended(command, "a switchover after SIGKILL")

    def _run_terminated(self, move: Move) -> None:
        command = self._world.switchover(move)
        self._at_some_moment(command)
        command.send(signal.SIGTERM)
        self._world.ended(command, "a switchover after SIGTERM", 20.0)

    def _run_short(self, move: Move) -> None:
        self._world.ended(self._world.switchover(move, "--timeout", "1"), "a switchover with --timeout 1")

    def _abort(self, move: Move) -> None:
        command = self._world.switchover(move, "--abort")
        if self._world.ended(command, "an abort") == 0:
            self._require_owner(move, move.source, "the abort reported success")

    def _abort_killed(self, move: Move) -> None:
        command = self._world.switchover(move, "--abort")
        time.sleep(self._draw.uniform(0.0, 0.5))
        command.send(self._draw.choice((signal.SIGKILL, signal.SIGTERM)))
        self._world.ended(command, "an abort after a signal", 20.0)

    def _at_some_moment(self, command: Command) -> None:
        """Wait until just after a randomly drawn step, or for a random time."""
        if self._draw.random() < 0.5:
            step = self._draw.choice(STEPS)
            command.wait_until_logged(f'"step": "{step}"', 10.0)
            time.sleep(self._draw.choice((0.0, 0.0, 0.005, 0.02, 0.05)))
        else:
            command.wait(self._draw.uniform(0.05, _RUN_SECONDS))

    # Wrong requests.

    def _wrong_end(self, move: Move) -> None:
        """Give a wrong destination: it has to be refused, and nothing may change anywhere."""
        world = self._world
        # Another spelling of the address of the same server.
        ends = {"itself": f"{world.dsn(move.source)}&application_name=virtual"}
        ends |= {name: server.dsn() for name, server in self._wrong_ends.items()}
        end = self._draw.choice(sorted(ends))
        options = ("--abort",) if self._draw.random() < 0.3 else ()
        before = world.look(*self._wrong_ends.values())
        command = world.switchover(move, *options, "--timeout", "3", dsn=ends[end])
        code = world.ended(command, f"a switchover to {end}")
        after = world.look(*self._wrong_ends.values())
        if code == 0:
            world.fault("a wrong destination was accepted", f"{end} {options}")
        for what in changed(before, after, world.servers[move.destination].incarnation):
            world.fault("a wrong destination changed something", f"{end} {options}: {what}: {command.message}")

    def _wrong_schemas(self, move: Move) -> None:
        """Name one schema too many, one too few, only one that never moved, or gitlab_shared."""
        world, draw = self._world, self._draw
        others = [each for each in TABLES if each not in move.gitlab_schemas]
        kinds = ["shared"]
        kinds += ["one too many", "never moved"] if others else []
        kinds += ["one too few"] if len(move.gitlab_schemas) > 1 else []
        kind = draw.choice(kinds)
        wrong = {
            "shared": (*move.gitlab_schemas, SHARED),
            "one too many": (*move.gitlab_schemas, *others[:1]),
            "never moved": tuple(others[:1]),
            "one too few": move.gitlab_schemas[1:],
        }[kind]
        # In a run, one more schema moves too and one less does not: neither is a mistake before all are closed.
        options = draw.choice((("--abort",), ("--abort",), ("--status",), *(((),) if kind == "shared" else ())))
        before = world.look()
        command = world.switchover(replace(move, gitlab_schemas=wrong), *options, "--timeout", "3")
        code = world.ended(command, f"{options or 'a run'} with {kind}")
        after = world.look()
        if options == ("--status",) or kind in ("never moved", "shared"):
            for what in changed(before, after, world.servers[move.destination].incarnation):
                world.fault("wrong gitlab schemas changed something", f"{options} with {kind}: {what}")
        if options == ("--abort",) and code == 0:
            self._require_owner(replace(move, gitlab_schemas=wrong), move.source, f"the abort with {kind} succeeded")

    def _one_too_few(self, move: Move) -> None:
        """Once all are closed, run it for some only: the others are not forgotten, and it does not open them."""
        world = self._world
        owners = world.sight(move.source).owners
        few = replace(move, gitlab_schemas=move.gitlab_schemas[1:])
        if not few.gitlab_schemas or any(owners[each][0] != move.destination for each in move.gitlab_schemas):
            return
        if world.ended(world.switchover(few, "--timeout", "5"), "a switchover of some of the closed schemas") == 0:
            self._require_owner(few, move.destination, "the switchover of some reported success")

    def _status(self, move: Move) -> None:
        world = self._world
        command = world.switchover(move, "--status", "--json")
        if world.ended(command, "a status") == 0:
            document = command.json()
            assert {"steps", "complete"} <= document.keys()
        else:
            world.fault("status failed", command.message)

    def _cleanup(self, move: Move) -> None:
        """Remove records that belong to another database: never those in use."""
        world = self._world
        name = self._draw.choice((move.source, move.destination))
        world.ended(world.command("cleanup", name, "--yes"), f"cleanup {name}")

    # Obstacles.

    def _held(self, move: Move) -> None:
        """Keep a transaction of the application open: it holds the guard's lock without writing a row."""
        world = self._world
        table = TABLES[move.gitlab_schemas[0]]
        with psycopg.connect(world.dsn(move.source)) as connection, contextlib.suppress(psycopg.Error):
            connection.execute(f"UPDATE public.{table} SET name = name WHERE id = -1".encode())
            command = world.switchover(move, "--timeout", "1")
            if self._draw.random() < 0.5:
                time.sleep(self._draw.uniform(0.1, 1.0))
                command.send(self._draw.choice((signal.SIGTERM, signal.SIGKILL)))
            world.ended(command, "a switchover while a transaction is open")
            connection.rollback()

    def _prepared(self, move: Move) -> None:
        """Keep a prepared transaction, which the creation of a slot waits for, through some of the other troubles."""
        world = self._world
        name = f"{_PREPARED} {world.story['prepared transaction']}"
        try:
            with psycopg.connect(world.dsn(move.source)) as connection:
                connection.execute("INSERT INTO public.unguarded VALUES (1)")
                connection.execute(f"PREPARE TRANSACTION '{name}'".encode())
        except psycopg.Error:
            return  # the server has become a standby
        try:
            for _ in range(self._draw.randrange(1, 4)):
                command = world.switchover(move, "--timeout", "2")
                how = self._draw.random()
                if how < 0.7:
                    time.sleep(self._draw.uniform(0.5, 2.5))
                    command.send(signal.SIGKILL if how < 0.4 else signal.SIGTERM)
                if world.ended(command, "a switchover while a prepared transaction exists", 20.0) == 0:
                    self._require_owner(move, move.destination, "the switchover reported success")
            time.sleep(self._draw.uniform(0.0, 0.5))
        finally:
            for side in (move.source, move.destination):
                with contextlib.suppress(psycopg.Error), world.servers[side].connect() as connection:
                    connection.execute(f"ROLLBACK PREPARED '{name}'".encode())

    def _standby_away(self, move: Move) -> None:
        """Stop the standby for a while, with or without a running switchover."""
        world, standby = self._world, self._world.servers[move.destination]
        is_standby = standby.stands_by()
        command = world.switchover(move, "--timeout", "3") if self._draw.random() < 0.7 else None
        time.sleep(self._draw.uniform(0.0, 0.6))
        is_standby = is_standby and standby.stands_by()
        since = time.time()
        standby.stop(self._draw.choice((signal.SIGINT, signal.SIGQUIT)))
        time.sleep(self._draw.uniform(0.2, 1.5))
        if is_standby:
            world.outages.append((move.source, since, time.time()))
        standby.start()
        if command is not None:
            world.ended(command, "a switchover while the standby was away")

    def _primary_away(self, move: Move) -> None:
        """Crash or restart the old owner's server, with or without a running switchover."""
        world, primary = self._world, self._world.servers[move.source]
        command = world.switchover(move, "--timeout", "3") if self._draw.random() < 0.7 else None
        time.sleep(self._draw.uniform(0.0, 0.6))
        primary.stop(self._draw.choice((signal.SIGINT, signal.SIGQUIT)))
        time.sleep(self._draw.uniform(0.0, 0.5))
        primary.start()
        if command is not None:
            world.ended(command, "a switchover while the old owner was away")

    def _two_at_once(self, move: Move) -> None:
        world = self._world
        kinds = ((), (), ("--abort",), ("--status",))
        commands = [world.switchover(move, "--timeout", "5", *self._draw.choice(kinds)) for _ in range(2)]
        for command in commands:
            world.ended(command, "one of two switchovers", 40.0)

    def _frozen(self, move: Move) -> None:
        """Freeze a switchover, terminate its sessions as a server's timeout would, and let it continue later."""
        world = self._world
        frozen = world.switchover(move, "--timeout", "5")
        self._at_some_moment(frozen)
        frozen.send(signal.SIGSTOP)
        try:
            for side in (move.source, move.destination):
                if self._draw.random() < 0.7:
                    _end_sessions(world.servers[side])
            other = world.switchover(move, *self._draw.choice(((), ("--abort",))), "--timeout", "5")
            world.ended(other, "a switchover while another is frozen", 60.0)
        finally:
            frozen.send(signal.SIGCONT)
        world.ended(frozen, "a switchover that was frozen", 60.0)


def _end_sessions(server: Server) -> None:
    with contextlib.suppress(psycopg.OperationalError), server.connect() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '%switchover%'"
        )


@contextlib.contextmanager
def killed_now_and_then(world: World) -> Iterator[None]:
    """Kill services at random inside the block."""
    calm = threading.Event()
    draw = type(world.draw)(world.draw.random())

    def kill() -> None:
        while not calm.wait(draw.uniform(0.3, 3.0)):
            service = world.services[draw.choice(sorted(world.services))]
            service.kill()
            world.story["services killed"] += 1

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        yield
    finally:
        calm.set()
        killer.join()

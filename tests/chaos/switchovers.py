"""Switchovers killed at every step, repeated, aborted, given wrong destinations, in sequence and back again.

Each run has its own primary and standby, both producers, consumers, and an application that tries to write on every
side at every moment. Triggers on all sides log each write with what the database believed about itself. The log proves
one owner at every instant, every write published once and in order, and each row that the migration had to change
changed once, by the owner (`tests/chaos/tenures.py`).
"""

from __future__ import annotations

import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from infra.stack import EmbeddedStack
from tests.chaos.both_sides import CI, MAIN, SEC, build
from tests.chaos.server_pairs import SYNCHRONIZES_SLOTS, Server, Template, versions
from tests.chaos.switchover_troubles import AFTERWARDS, Troubles, killed_now_and_then
from tests.chaos.switchover_world import FIRST, SECOND, THIRD, Move, World
from tests.chaos.tenures import Fault

_FEW: Final = (0, 5)
"""Number of troubles per move."""
_SHOWN: Final = 2
_templates: dict[int, tuple[Template, Template]] = {}


def play_round(stack: EmbeddedStack, directory: Path, seed: int) -> dict[str, Any]:
    """Play one run; raises AssertionError with every broken promise."""
    draw = random.Random(seed)
    version = draw.choice(sorted(found for found in versions() if found == 15 or found >= SYNCHRONIZES_SLOTS))
    own, foreign = _templates_of(version, stack)
    prefix = f"s{seed}x{draw.randrange(16**4):04x}"
    place = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=own.directory.parent))
    place.chmod(0o711)
    began = time.monotonic()
    world = World(stack.endpoints.bootstrap_servers, own, place, prefix, draw)
    wrong: dict[str, Server] = {}
    try:
        _make_wrong_ends(world, foreign, wrong)
        world.start()
        kind = draw.choices(list(_KINDS), [weight for weight, _ in _KINDS.values()])[0]
        world.story[kind] += 1
        if version >= SYNCHRONIZES_SLOTS and draw.random() < 0.6:
            world.until(lambda: world.servers[SECOND].synchronized(world.servers[FIRST]), "the slot's copy")
            world.story["slot synchronized"] += 1
        world.note("started")
        with killed_now_and_then(world):
            complete = _KINDS[kind][1](world, Troubles(world, wrong))
        world.note("moved")
        if complete:
            world.wait_for_writes()
        world.settle()
        if complete:
            world.clean_up()
        world.note("settled")
        for service in world.services.values():
            service.stop()
        faults = world.judge()
    except BaseException:
        for fault in world.faults:
            print(*fault, sep=": ", file=sys.stderr)
        raise
    finally:
        world.close()
        for server in wrong.values():
            server.stop(signal.SIGQUIT)
    story = {"PostgreSQL": version, **world.story, "seconds": round(time.monotonic() - began, 1)}
    if faults:
        raise AssertionError("\n  ".join([f"{story}", *world.notes, *_listed(faults)]))
    return story


def _listed(faults: Sequence[Fault]) -> Iterator[str]:
    """Return a line for each fault; for some kinds only the number of further ones."""
    kinds = Counter(fault.kind for fault in faults)
    for kind, count in kinds.items():
        yield from (f"{kind}: {fault.what}" for fault in [each for each in faults if each.kind == kind][:_SHOWN])
        if count > _SHOWN:
            yield f"{kind}: and {count - _SHOWN} more"


def _one(world: World, troubles: Troubles) -> bool:
    """Move some gitlab schemas to the standby, usually including that of the migration."""
    schemas = world.draw.choice(((MAIN,), (MAIN, CI), (MAIN, CI, SEC), (CI,)))
    return _move(world, troubles, Move(schemas, FIRST, SECOND))


def _another(world: World, troubles: Troubles) -> bool:
    """Move one to a standby, then another to another standby; a move to the first standby has to be refused."""
    if not _move(world, troubles, Move((MAIN,), FIRST, SECOND)):
        return False
    late = world.switchover(Move((CI,), FIRST, SECOND), "--timeout", "3")
    if world.ended(late, "a move to a server promoted for another schema") == 0:
        world.fault("moved to a server that is no longer a standby", CI)
    elif "rebuild it as a standby" in late.message:
        world.fault("the remedy would discard what second owns", late.message)
    world.make_standby(THIRD, FIRST)
    world.serve("produce", THIRD)
    return _move(world, troubles, Move((CI,), FIRST, THIRD))


def _onwards(world: World, troubles: Troubles) -> bool:
    """Move to a standby, and from there to its standby."""
    if not _move(world, troubles, Move((MAIN, CI), FIRST, SECOND)):
        return False
    world.make_standby(THIRD, SECOND)
    world.serve("produce", THIRD)
    return _move(world, troubles, Move((MAIN,), SECOND, THIRD))


def _and_back(world: World, troubles: Troubles) -> bool:
    """Move all to a standby, and back to the old primary, which has become a standby of the new one."""
    schemas = (MAIN, CI, SEC)
    if not _move(world, troubles, Move(schemas, FIRST, SECOND)):
        return False
    world.until(lambda: world.given_up(FIRST), "first to publish everything up to the handover")
    world.make_standby(FIRST, SECOND)
    return _move(world, troubles, Move(schemas, SECOND, FIRST))


_KINDS: Final[dict[str, tuple[float, Callable[[World, Troubles], bool]]]] = {
    "one": (0.5, _one),
    "another": (0.15, _another),
    "onwards": (0.15, _onwards),
    "and back": (0.2, _and_back),
}
"""Scenarios: how often each is played, and its function."""


def _move(world: World, troubles: Troubles, move: Move) -> bool:
    """Make a move, through some troubles; return whether it is complete."""
    world.moving[world.servers[move.destination].incarnation] = move.gitlab_schemas
    for _ in range(world.draw.randint(*_FEW)):
        troubles.make(move)
    world.note(f"completing {move}")
    if not troubles.complete(move):
        return False
    source, destination = world.servers[move.source], world.servers[move.destination]
    source.forget_standby(destination)
    world.note(f"completed {move}")
    for _ in range(world.draw.choice((0, 0, 1, 2))):
        troubles.make(move, AFTERWARDS)
    world.require_slot(move.destination)
    return True


def _make_wrong_ends(world: World, foreign: Template, ends: dict[str, Server]) -> None:
    """Start servers that are no valid destination in advance: the foreign one, the promoted one, or none."""
    kind = world.draw.choice(("foreign", "promoted early", "none", "none"))
    place = world.directory / "wrong"
    if kind == "foreign":
        ends[kind] = Server.primary(foreign, place)
    elif kind == "promoted early":
        first = world.servers[FIRST]
        ends[kind] = Server.standby(first, place)
        with ends[kind].connect() as connection:
            connection.execute("SELECT pg_promote(true, 60)")
        first.forget_standby(ends[kind])
        first.wait_for_standby(world.servers[SECOND])


def _templates_of(version: int, stack: EmbeddedStack) -> tuple[Template, Template]:
    """Return the templates to copy servers from: the moves' own, and that of another database system."""
    if version not in _templates or not _templates[version][0].data.exists():
        place = Path(tempfile.mkdtemp(prefix="pg-", dir=stack.directory))
        place.chmod(0o711)
        made = (Template(place / name, stack.keeper, version, build) for name in ("own", "foreign"))
        _templates[version] = (next(made), next(made))
    return _templates[version]

"""Switchovers killed at every step, run again, aborted, led to wrong ends, one after another and back again.

Each run has a primary and a standby of its own, both producers, consumers, and an application that tries to write on
every side at every moment. What was written is logged by triggers on all sides with what the database believed of
itself, and proves afterwards: one owner at every instant, every write published once and in order, and each row that
the migration was to change changed once, by the owner (`tests/chaos/tenures.py`).
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
"""How many troubles a move has."""
_SHOWN: Final = 2
_templates: dict[int, tuple[Template, Template]] = {}


def play_round(stack: EmbeddedStack, directory: Path, seed: int) -> dict[str, Any]:
    """Play one run; raises AssertionError with every promise that was broken."""
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
            world.until(lambda: world.servers[SECOND].synchronized(world.servers[FIRST]), "the slot is on the standby")
            world.story["slot synchronized"] += 1
        world.note("started")
        with killed_now_and_then(world):
            complete = _KINDS[kind][1](world, Troubles(world, wrong))
        world.note("moved")
        if complete:
            world.goes_on()
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
    """Return a line for each fault, but for some only how many more there are of its kind."""
    kinds = Counter(fault.kind for fault in faults)
    for kind, count in kinds.items():
        yield from (f"{kind}: {fault.what}" for fault in [each for each in faults if each.kind == kind][:_SHOWN])
        if count > _SHOWN:
            yield f"{kind}: and {count - _SHOWN} more"


def _one(world: World, troubles: Troubles) -> bool:
    """Some gitlab schemas, among them mostly that of the migration, to the standby."""
    schemas = world.draw.choice(((MAIN,), (MAIN, CI), (MAIN, CI, SEC), (CI,)))
    return _move(world, troubles, Move(schemas, FIRST, SECOND))


def _another(world: World, troubles: Troubles) -> bool:
    """One to a standby, then another one to another standby; that it cannot go to the first is said so."""
    if not _move(world, troubles, Move((MAIN,), FIRST, SECOND)):
        return False
    late = world.switchover(Move((CI,), FIRST, SECOND), "--timeout", "3")
    if world.ended(late, "a move to what was promoted for another") == 0:
        world.fault("moved to a server that is no standby any more", CI)
    elif "standby anew" in late.message:
        world.fault("a remedy that would throw away what second owns", late.message)
    world.make_standby(THIRD, FIRST)
    world.serve("produce", THIRD)
    return _move(world, troubles, Move((CI,), FIRST, THIRD))


def _onwards(world: World, troubles: Troubles) -> bool:
    """To a standby, and from there to a standby of that."""
    if not _move(world, troubles, Move((MAIN, CI), FIRST, SECOND)):
        return False
    world.make_standby(THIRD, SECOND)
    world.serve("produce", THIRD)
    return _move(world, troubles, Move((MAIN,), SECOND, THIRD))


def _and_back(world: World, troubles: Troubles) -> bool:
    """All to a standby, and back to the old primary, which was made a standby of the new one."""
    schemas = (MAIN, CI, SEC)
    if not _move(world, troubles, Move(schemas, FIRST, SECOND)):
        return False
    world.until(lambda: world.given_up(FIRST), "first has published all that it gave away")
    world.make_standby(FIRST, SECOND)
    return _move(world, troubles, Move(schemas, SECOND, FIRST))


_KINDS: Final[dict[str, tuple[float, Callable[[World, Troubles], bool]]]] = {
    "one": (0.5, _one),
    "another": (0.15, _another),
    "onwards": (0.15, _onwards),
    "and back": (0.2, _and_back),
}
"""What is moved: how often, and by whom."""


def _move(world: World, troubles: Troubles, move: Move) -> bool:
    """Do a move, through some troubles; return whether it is complete."""
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
    """Have servers at hand that no move may lead to, since each takes a while to start: one, the other, or none."""
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
    """Return what servers are copied from: those of the moves, and those of another database system."""
    if version not in _templates or not _templates[version][0].data.exists():
        place = Path(tempfile.mkdtemp(prefix="pg-", dir=stack.directory))
        place.chmod(0o711)
        made = (Template(place / name, stack.keeper, version, build) for name in ("own", "foreign"))
        _templates[version] = (next(made), next(made))
    return _templates[version]

"""A lazy dataclass is a dataclass of the standard library from its first instance on, and costs little before."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.state.history import Actor
from schemas.lazy_dataclass import dataclass

ROOT = Path(__file__).parents[2]
ACTOR = Actor("mary", "because")


@dataclass(frozen=True)
class Point:
    x: int
    y: int = 2
    names: tuple[str, ...] = dataclasses.field(default=(), compare=False)


@dataclass(frozen=True)
class Place(Point):
    z: int = 3


class Shifted(Place):
    def __init__(self, by: int) -> None:
        super().__init__(by, by, z=by)


def test_first_instance_of_the_last_subclass_makes_the_methods_of_all() -> None:
    assert "__repr__" not in vars(Point)
    assert "__repr__" not in vars(Place)
    shifted = Shifted(1)
    assert (shifted.x, shifted.y, shifted.z) == (1, 1, 1)
    assert repr(Place(1)) == "Place(x=1, y=2, names=(), z=3)"
    assert [field.name for field in dataclasses.fields(Place)] == ["x", "y", "names", "z"]


def test_instances_are_equal_hashed_frozen_and_replaced_as_those_of_a_dataclass() -> None:
    assert Point(1, names=("a",)) == Point(1, 2, ("b",)) != Point(2)
    assert len({Point(1), Point(1, 2, ("b",)), Point(2)}) == 2
    assert dataclasses.replace(Point(1), y=5) == Point(1, 5)
    assert dataclasses.asdict(Point(1)) == {"x": 1, "y": 2, "names": ()}
    with pytest.raises(dataclasses.FrozenInstanceError):
        Point(1).x = 2  # type: ignore[misc]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        Point()  # type: ignore[call-arg]
    match Place(7):
        case Place(x, y):
            assert (x, y) == (7, 2)


def test_mutable_one_can_be_changed_and_compared_by_identity() -> None:
    @dataclass(eq=False)
    class Counter:
        number: int = 0

    counter = Counter()
    counter.number += 1
    assert counter.number == 1
    assert Counter(1) != Counter(1)


def test_unpickled_first_instance_of_a_process_has_its_methods() -> None:
    given = pickle.dumps(ACTOR)
    program = "import pickle, sys\nprint(pickle.loads(sys.stdin.buffer.read()))"
    ended = subprocess.run([sys.executable, "-c", program], input=given, capture_output=True, check=True, cwd=ROOT)
    assert ended.stdout.decode().strip() == repr(ACTOR)


def test_thread_that_comes_while_the_methods_are_made_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    began, go_on = threading.Event(), threading.Event()
    real: Callable[..., Callable[[type], type]] = dataclasses.dataclass

    def slow(**options: bool) -> Callable[[type], type]:
        began.set()
        assert go_on.wait(60)
        return real(**options)

    @dataclass(frozen=True)
    class Pair:
        left: int
        right: int

    monkeypatch.setattr(dataclasses, "dataclass", slow)
    made: list[Pair] = []
    threads = [threading.Thread(target=lambda number=number: made.append(Pair(number, number))) for number in (1, 1)]
    threads[0].start()
    assert began.wait(60)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join()
    assert made == [Pair(1, 1), Pair(1, 1)]


def test_slots_are_refused_as_the_class_would_be_another_one() -> None:
    with pytest.raises(TypeError, match="slots"):
        dataclass(frozen=True, slots=True)

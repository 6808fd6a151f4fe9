"""Readings that repeat while someone watches, and rest otherwise."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from consumers.testing.waiting import until
from consumers.web.watcher import WATCHED_SECONDS, Audience, Watcher
from schemas.errors import DatabaseUnavailable


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Server:
    """What is read; it may fail, and it may hang."""

    def __init__(self) -> None:
        self.looks = 0
        self.rests = 0
        self.error: Exception | None = None
        self.answers = threading.Event()
        self.answers.set()

    def look(self) -> None:
        self.looks += 1
        self.answers.wait()
        if self.error is not None:
            raise self.error

    def rest(self) -> None:
        self.rests += 1


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def audience(clock: Clock) -> Iterator[Audience]:
    made = Audience(clock)
    yield made
    made.leave()


def watching(server: Server, audience: Audience, clock: Clock) -> Watcher:
    made = Watcher("the server", server.look, server.rest, audience, every=0.0, clock=clock)
    made.start()
    return made


def test_nothing_is_read_before_someone_watches_and_after(audience: Audience, clock: Clock) -> None:
    server = Server()
    watcher = watching(server, audience, clock)
    assert not watcher.looked(0.0)
    assert server.looks == 0
    audience.arrive()
    assert watcher.looked(60.0)
    until(lambda: server.looks > 3, "it is read again and again")
    clock.seconds += WATCHED_SECONDS
    until(lambda: server.rests == 1, "it rests")
    assert not watcher.looked(0.0)
    looks = server.looks
    audience.leave()
    watcher.join(60.0)
    assert server.looks == looks


def test_it_rests_whenever_the_last_request_expires() -> None:
    """Also between its look at who watches and its wait for the next: it would keep its connection until then."""
    clock = Clock()

    class Expiring(Audience):
        @property
        def watches(self) -> bool:
            watched = super().watches
            clock.seconds += WATCHED_SECONDS * 0.4
            return watched

    server, audience = Server(), Expiring(clock)
    watching(server, audience, clock)
    audience.arrive()
    until(lambda: server.rests == 1, "it rests")
    audience.leave()


def test_failure_is_named_until_a_reading_succeeds(audience: Audience, clock: Clock) -> None:
    server = Server()
    server.error = DatabaseUnavailable("PostgreSQL at h:1/d does not answer", remedy="start it")
    watcher = watching(server, audience, clock)
    audience.arrive()
    assert watcher.looked(60.0)
    assert watcher.problem == "PostgreSQL at h:1/d does not answer; start it"
    server.error = ZeroDivisionError("with a value of a row")
    until(lambda: watcher.problem == "the server could not be read: ZeroDivisionError", "a bug is named, too")
    server.error = None
    until(lambda: watcher.problem is None, "it answers")


def test_server_that_hangs_delays_no_other(audience: Audience, clock: Clock) -> None:
    hangs, answers = Server(), Server()
    hangs.answers.clear()
    one, other = watching(hangs, audience, clock), watching(answers, audience, clock)
    audience.arrive()
    assert other.looked(60.0)
    assert not one.looked(0.0)
    hangs.answers.set()
    assert one.looked(60.0)


def test_interval_counts_from_the_beginning_of_a_reading() -> None:
    began: list[float] = []
    clock = Clock()

    class Passing(Audience):
        """A pause that takes no time of the test's."""

        def pause(self, seconds: float) -> None:
            clock.seconds += seconds
            if len(began) == 5:
                self.leave()

    audience = Passing(clock)

    def look() -> None:
        began.append(clock.seconds)
        clock.seconds += 0.25
        audience.arrive()

    audience.arrive()
    watcher = Watcher("the server", look, lambda: None, audience, every=1.0, clock=clock)
    watcher.start()
    watcher.join(60.0)
    assert began == [1000.0, 1001.0, 1002.0, 1003.0, 1004.0]

"""Lists that viewers open are read once a second, and a hung server takes few threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from consumers.testing.waiting import PATIENCE
from consumers.web.listings import Listings, TooManyViewers


class Server:
    """Answers with the number of its questions, once it may."""

    def __init__(self) -> None:
        self.asked = 0
        self.arrived = threading.Semaphore(0)
        self.answers = threading.Event()
        self.answers.set()

    def __call__(self) -> int:
        self.asked += 1
        asked = self.asked
        self.arrived.release()
        assert self.answers.wait(PATIENCE)
        return asked


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.answers.set()


def test_list_is_read_once_a_second_for_all_viewers(server: Server) -> None:
    now = 5.0
    listings = Listings[int](lambda: now)
    assert [listings.get("a", server) for _ in range(3)] == [1, 1, 1]
    assert listings.get("b", server) == 2
    now = 5.9
    assert listings.get("a", server) == 1
    now = 6.1
    assert listings.get("a", server) == 3


def test_changed_list_is_read_again(server: Server) -> None:
    listings = Listings[int](lambda: 5.0)
    assert listings.get("a", server) == 1
    listings.forget("a")
    assert listings.get("a", server) == 2


def test_list_that_changes_while_it_is_read_is_read_again(server: Server) -> None:
    listings = Listings[int](lambda: 5.0)
    server.answers.clear()
    viewer = threading.Thread(target=listings.get, args=("a", server))
    viewer.start()
    assert server.arrived.acquire(timeout=PATIENCE)
    listings.forget("a")
    server.answers.set()
    viewer.join(PATIENCE)
    assert listings.get("a", server) == 2


def test_failed_reading_is_not_kept(server: Server) -> None:
    listings = Listings[int](lambda: 5.0)
    with pytest.raises(ZeroDivisionError):
        listings.get("a", lambda: 1 // 0)
    assert listings.get("a", server) == 1


def test_hung_server_takes_few_threads(server: Server) -> None:
    listings = Listings[int](lambda: 5.0)
    server.answers.clear()
    refused: list[TooManyViewers] = []
    done = threading.Semaphore(0)

    def view() -> None:
        try:
            listings.get("a", server)
        except TooManyViewers as error:
            refused.append(error)
        done.release()

    viewers = [threading.Thread(target=view) for _ in range(20)]
    for viewer in viewers:
        viewer.start()
    for _ in range(12):
        assert done.acquire(timeout=PATIENCE), "all but eight are answered"
    assert (len(refused), server.asked) == (12, 1)
    server.answers.set()
    for viewer in viewers:
        viewer.join(PATIENCE)
    assert (len(refused), server.asked) == (12, 1)
    assert listings.get("b", server) == 2, "the places are free again"

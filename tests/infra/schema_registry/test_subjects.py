"""Subjects and versions as the topic's records give them, and the thread that follows the topic."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from consumers.testing.waiting import until
from infra.schema_registry.subjects import FollowedSubjects, Registration, Subjects, Version
from schemas.errors import BrokerUnavailable, Unavailable

A, B = '{"type":"long"}', '{"type":"string"}'


def subjects_of(*records: Registration) -> Subjects:
    subjects = Subjects()
    for each in records:
        subjects.add(*each)
    return subjects


def numbers(subjects: Subjects, name: str) -> list[tuple[int, int]]:
    return [(each.number, each.schema_id) for each in subjects.versions(name)]


def test_versions_count_from_one_in_each_subject() -> None:
    subjects = subjects_of((1, "s", A), (2, "t", A), (3, "s", B))
    assert subjects.names() == ["s", "t"]
    assert numbers(subjects, "s") == [(1, 1), (2, 3)]
    assert numbers(subjects, "t") == [(1, 2)]
    assert numbers(subjects, "u") == []
    assert [(each.subject, each.number) for each in subjects.versions_of(2)] == [("t", 1)]


def test_schema_registered_twice_at_once_has_one_version_and_two_ids() -> None:
    subjects = subjects_of((1, "s", A), (2, "s", A))
    assert numbers(subjects, "s") == [(1, 1)]
    assert subjects.texts == {1: A, 2: A}


def test_schema_registered_again_after_another_is_the_latest_with_its_first_id() -> None:
    assert numbers(subjects_of((1, "s", A), (2, "s", B), (3, "s", A)), "s") == [(1, 1), (2, 2), (3, 1)]


def test_equal_schema_is_found_whatever_its_text() -> None:
    subjects = subjects_of((1, "s", A), (2, "s", B), (3, "s", A))
    assert subjects.find("s", "long") == Version("s", 3, 1, A)
    assert subjects.find("s", {"type": "string", "doc": "x"}) == Version("s", 2, 2, B)
    assert subjects.find("s", "int") is None
    assert subjects.find("t", "long") is None


class Topic:
    """A topic in memory; a read first calls `before`, and waits for `passing` if it is not set."""

    def __init__(self) -> None:
        self.records: list[Registration] = []
        self.reads = 0
        self.begun = threading.Event()
        self.passing = threading.Event()
        self.passing.set()
        self.failing = False
        self._next = 0

    def read(self) -> Iterator[Registration]:
        self.reads += 1
        self.begun.set()
        self.passing.wait(60)
        while self._next < len(self.records):
            self._next += 1
            yield self.records[self._next - 1]
        if self.failing:
            raise BrokerUnavailable("Kafka at h:9092 does not answer")


@contextmanager
def followed(topic: Topic) -> Iterator[FollowedSubjects]:
    subjects = FollowedSubjects(topic.read)
    try:
        yield subjects
    finally:
        topic.passing.set()
        subjects.close()


def names(subjects: FollowedSubjects) -> list[str]:
    return subjects.ask(lambda found: found.names())


def test_refresh_sees_what_was_registered_before() -> None:
    topic = Topic()
    with followed(topic) as subjects:
        for number, name in enumerate(("s", "t", "u"), start=1):
            topic.records.append((number, name, A))
            subjects.refresh()
            assert len(names(subjects)) == number


def test_recent_read_is_enough_where_that_is_allowed() -> None:
    topic = Topic()
    with followed(topic) as subjects:
        subjects.refresh()
        subjects.refresh(max_age=3600)
        assert topic.reads == 1
        subjects.refresh(max_age=0)
        assert topic.reads == 2


def test_requests_that_wait_share_the_next_read() -> None:
    topic = Topic()
    topic.passing.clear()
    with followed(topic) as subjects, ThreadPoolExecutor(8) as threads:
        first = threads.submit(subjects.refresh)
        assert topic.begun.wait(60)
        waiting = [threads.submit(subjects.refresh) for _ in range(6)]
        until(lambda: subjects._asked == 7, "all have asked")
        topic.records.append((1, "s", A))
        topic.passing.set()
        for each in (first, *waiting):
            each.result(60)
        assert topic.reads == 2, "not the one that began before they came"
        assert names(subjects) == ["s"]


def test_failed_read_is_an_error_and_what_it_read_stays() -> None:
    topic = Topic()
    topic.failing = True
    topic.records.append((1, "s", A))
    with followed(topic) as subjects:
        with pytest.raises(Unavailable, match="Kafka at h:9092 does not answer"):
            subjects.refresh()
        assert names(subjects) == ["s"]
        topic.failing = False
        topic.records.append((2, "t", A))
        subjects.refresh(max_age=3600)
        assert names(subjects) == ["s", "t"], "a failed read is not a recent one"


def test_read_that_takes_too_long_is_an_error_of_the_request_alone() -> None:
    topic = Topic()
    topic.passing.clear()
    with followed(topic) as subjects:
        with pytest.raises(Unavailable, match="Kafka does not answer"):
            subjects.refresh(seconds=0.01)
        topic.records.append((1, "s", A))
        topic.passing.set()
        subjects.refresh()
        assert names(subjects) == ["s"]


def test_close_ends_requests_that_wait() -> None:
    topic = Topic()
    topic.passing.clear()
    with followed(topic) as subjects, ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(subjects.refresh, seconds=60)
        assert topic.begun.wait(60)
        subjects.close()
        with pytest.raises(Unavailable):
            waiting.result(60)


def test_thread_ends_with_the_subjects() -> None:
    def threads() -> int:
        return sum(each.name == "schemas topic" for each in threading.enumerate())

    until(lambda: threads() == 0, "those of other tests have ended")
    with followed(Topic()) as subjects:
        subjects.refresh()
        assert threads() == 1
    while threads() > 0:  # the time limit of the tests is the deadline
        threading.Event().wait(0.001)

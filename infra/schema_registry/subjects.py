"""The subjects and versions of the schemas topic, and a thread that follows the topic on request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, TypeVar

from infra.schema_registry.registry_identity import fingerprint
from schemas.errors import HeadraceError, Unavailable

ANSWER_SECONDS: Final = 5.0
"""How long a request waits for Kafka, below the time limit of a request."""

T = TypeVar("T")

Registration = tuple[int, str, str]
"""Id, subject and schema text of a record of the schemas topic."""


class Version(NamedTuple):
    """A version of a subject; the first has number 1."""

    subject: str
    number: int
    schema_id: int
    text: str


class Subjects:
    """What the records of the topic registered. A schema registered again, after others, is a new version."""

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}
        """Schema id → text."""
        self._versions: dict[str, list[Version]] = {}
        self._ids: dict[tuple[str, str], int] = {}

    def add(self, schema_id: int, subject: str, text: str) -> None:
        """Add a record; the first id of a schema counts, as for producers."""
        self.texts[schema_id] = text
        first = self._ids.setdefault((subject, text), schema_id)
        versions = self._versions.setdefault(subject, [])
        if not versions or versions[-1].schema_id != first:
            versions.append(Version(subject, len(versions) + 1, first, text))

    def names(self) -> list[str]:
        """Return all subjects, sorted."""
        return sorted(self._versions)

    def versions(self, subject: str) -> list[Version]:
        """Return the versions of a subject, the oldest first; none if it is unknown."""
        return self._versions.get(subject, [])

    def versions_of(self, schema_id: int) -> list[Version]:
        """Return the versions whose schema has this id."""
        every = (self._versions[name] for name in self.names())
        return [version for versions in every for version in versions if version.schema_id == schema_id]

    def find(self, subject: str, schema: Any) -> Version | None:
        """Return the latest version of a subject with an equal schema, whatever its text."""
        wanted = fingerprint(schema)
        found = (each for each in reversed(self.versions(subject)) if fingerprint(json.loads(each.text)) == wanted)
        return next(found, None)


class FollowedSubjects:
    """The subjects of a topic, which a thread reads on request; requests that wait meanwhile share the next read."""

    def __init__(self, read: Callable[[], Iterable[Registration]]) -> None:
        """`read` yields the records after those that it has yielded."""
        self._read = read
        self._subjects = Subjects()
        self._changed = threading.Condition()
        self._asked = self._read_for = 0
        self._read_at = float("-inf")
        self._error: HeadraceError | None = None
        self._ended = False
        threading.Thread(target=self._follow, name="schemas topic", daemon=True).start()

    def ask(self, question: Callable[[Subjects], T]) -> T:
        """Return the answer of `question` to what was read so far."""
        with self._changed:
            return question(self._subjects)

    def refresh(self, max_age: float = 0.0, seconds: float = ANSWER_SECONDS) -> None:
        """Read the topic unless the last read began less than `max_age` seconds ago.

        Raises Unavailable if Kafka does not answer within `seconds`, and the error of the read.
        """
        with self._changed:
            if time.monotonic() - self._read_at < max_age:
                return
            self._asked += 1
            mine = self._asked
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._read_for >= mine or self._ended, seconds) or self._ended:
                raise Unavailable("Kafka does not answer")
            if self._error is not None:
                raise Unavailable(self._error.problem) from self._error

    def close(self) -> None:
        """End the thread, once a read in progress is over."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _follow(self) -> None:
        while self._wait():
            with self._changed:
                began, asked = time.monotonic(), self._asked
            error: HeadraceError | None = None
            found: list[Registration] = []
            try:
                for each in self._read():  # what came before an error counts: the next read continues after it
                    found.append(each)
            except HeadraceError as failure:
                error = failure
            with self._changed:
                for each in found:
                    self._subjects.add(*each)
                self._read_for, self._error = asked, error
                if error is None:
                    self._read_at = began
                self._changed.notify_all()

    def _wait(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._asked > self._read_for or self._ended)
            return not self._ended

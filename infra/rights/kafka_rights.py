"""Finds the Kafka rights that a client lacks, by asking the brokers: listing ACLs would need an administrator.

A broker reports the client's authorized operations on each resource. For a missing topic it reports only whether it may
be created; a right to transactional ids shows only in use, so one reserved for `check` is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # exported, but not by name

from infra.kafka import clients
from infra.kafka.denials import DENIALS, AccessDenied, principal
from infra.rights.acls import Acl, Kind, Operation
from infra.settings.model import KafkaSettings
from schemas.errors import Fenced, HeadraceError
from schemas.lazy_dataclass import dataclass

_SECONDS: Final = 20.0
_TICK: Final = 0.1
_PROBE: Final = "-check"
"""No name of a source or storage starts with it, so no producer is fenced."""


Needed = tuple[Iterable[Acl], Collection[str]]
"""The ACLs that a program needs, and the topics that it reads or writes."""


@dataclass(frozen=True)
class Lacking:
    """Operations that the client may not do on one resource."""

    kind: Kind
    name: str
    operations: tuple[Operation, ...]

    def __str__(self) -> str:
        """`Read, Describe on topic headrace.positions`."""
        words = ", ".join(operation.value for operation in self.operations)
        return f"{words} on {self.kind.value.replace('-', ' ')} {self.name}"


def lacking(settings: KafkaSettings, needed: Iterable[Acl], topics: Collection[str]) -> list[Lacking]:
    """Return the rights of `needed` that this client lacks; a prefixed ACL is checked for matching `topics`.

    Changes nothing, but opens an unused transactional id. Raises HeadraceError if Kafka does not answer.
    """
    wanted = list(needed)
    with clients.translated(settings):
        client = clients.admin(settings)  # kept in a variable: its futures end with it
        found = list(_topics(client, [acl for acl in wanted if acl.kind is Kind.TOPIC], topics))
        found += _groups(client, [acl for acl in wanted if acl.kind is Kind.GROUP])
    found += _transactions(settings, [acl for acl in wanted if acl.kind is Kind.TRANSACTIONAL_ID])
    return found


@contextmanager
def named(settings: KafkaSettings, needed: Callable[[], Needed]) -> Iterator[None]:
    """Let a denial raised inside list all missing rights: Kafka does not report which right was missing."""
    try:
        yield
    except AccessDenied as denial:
        try:
            found = lacking(settings, *needed())
        except HeadraceError:
            found = []
        if not found:
            raise
        raise AccessDenied(
            f"Kafka at {settings.bootstrap_servers} denies {principal(settings)} what it needs: {listed(found)}"
        ) from denial


def listed(found: Sequence[Lacking]) -> str:
    """Return the missing rights as text for a message."""
    return "; ".join(map(str, found))


def _topics(client: AdminClient, acls: Sequence[Acl], topics: Collection[str]) -> Iterator[Lacking]:
    wanted: dict[str, dict[Operation, None]] = {}
    for acl in acls:
        for name in [topic for topic in sorted(topics) if acl.covers(topic)] if acl.prefixed else [acl.name]:
            wanted.setdefault(name, {}).update(dict.fromkeys(acl.operations))
    if not wanted:
        return
    described = client.describe_topics(
        TopicCollection(list(wanted)), include_authorized_operations=True, request_timeout=_SECONDS
    )
    missing: list[str] = []
    for name, operations in wanted.items():
        allowed, there = _allowed(described[name], KafkaError.UNKNOWN_TOPIC_OR_PART)
        if not there:
            if Operation.CREATE in operations:
                missing.append(name)
        # An existing topic does not need Create.
        elif left := tuple(each for each in operations if each not in allowed and each is not Operation.CREATE):
            yield Lacking(Kind.TOPIC, name, left)
    yield from _creatable(client, missing)


def _creatable(client: AdminClient, names: Sequence[str]) -> Iterator[Lacking]:
    """Yield the topics that the client may not create; creates none."""
    asked = [NewTopic(name, num_partitions=1) for name in names]
    if not asked:
        return
    for name, future in client.create_topics(asked, validate_only=True, request_timeout=_SECONDS).items():
        try:
            clients.answer(future)
        except KafkaException as error:
            if error.args[0].code() in DENIALS:
                yield Lacking(Kind.TOPIC, name, (Operation.CREATE,))
            elif error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise


def _groups(client: AdminClient, acls: Sequence[Acl]) -> Iterator[Lacking]:
    for acl in acls:
        allowed, there = _allowed_of_group(client, acl.name)
        if there and (left := tuple(each for each in acl.operations if each not in allowed)):
            yield Lacking(Kind.GROUP, acl.name, left)


def _allowed_of_group(client: AdminClient, name: str) -> tuple[Collection[Operation], bool]:
    """Return the result of `_allowed`, retrying while the brokers do not know the group's coordinator."""
    deadline = time.monotonic() + _SECONDS
    while True:
        described = client.describe_consumer_groups(
            [name], include_authorized_operations=True, request_timeout=_SECONDS
        )
        try:
            return _allowed(described[name], KafkaError.GROUP_ID_NOT_FOUND)
        except KafkaException as error:
            if error.args[0].code() not in clients.COORDINATOR_STARTING or time.monotonic() > deadline:
                raise
        client.poll(_TICK)


def _allowed(future: Any, not_there: int) -> tuple[Collection[Operation], bool]:
    """Return the authorized operations on a resource, and whether it exists."""
    try:
        operations = clients.answer(future).authorized_operations
    except KafkaException as error:
        code = error.args[0].code()
        if code == not_there:
            return (), False
        if code in DENIALS:
            return (), True
        raise
    if operations is None:  # an old broker does not report them, and denies the operation itself
        return list(Operation), True
    names = {operation.name for operation in operations}
    return [each for each in Operation if each.name in names], True


def _transactions(settings: KafkaSettings, acls: Sequence[Acl]) -> Iterator[Lacking]:
    for acl in acls:
        if not acl.prefixed:
            continue  # using it would fence its current producer
        try:
            with clients.translated(settings):
                clients.producer(settings, transactional_id=f"{acl.name}{_PROBE}").init_transactions(_SECONDS)
        except AccessDenied:
            yield Lacking(Kind.TRANSACTIONAL_ID, f"{acl.name}*", acl.operations)
        except Fenced:
            pass  # by a concurrent check: so the right exists

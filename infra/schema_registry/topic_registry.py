"""Registers Avro schemas in a compacted topic, or in a Confluent-compatible registry (`url_registry`).

In the topic a schema's id is the offset of its record plus one: every registration gets a unique number, and the first
of two equal ones counts.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from typing import Any, Protocol

from infra.kafka import clients, topics
from infra.service import log
from infra.settings.model import Settings
from schemas import formats
from schemas.avro import require_format
from schemas.compatibility import incompatibilities
from schemas.errors import HeadraceError, Malformed, Refused
from schemas.topics import schemas_topic

AvroSchema = dict[str, Any]


class Registry(Protocol):
    """Maps schemas to ids and ids to schemas."""

    def register(self, subject: str, schema: AvroSchema) -> int:
        """Return the id of `schema` under `subject`, the same one each time.

        Called before anything is produced with it. Raises IncompatibleSchema if readers could not read records of both
        it and the subject's latest schema; nothing is registered then.
        """

    def register_all(self, wanted: Sequence[tuple[str, AvroSchema]]) -> None:
        """Register many at once, if that is faster than one by one; `register` reports refused ones.

        An optional, idempotent optimization before calling `register` for each.
        """

    def forget(self, subject: str) -> None:
        """Let the next schema of `subject` be incompatible with earlier ones: its topic is empty.

        Earlier ids keep their schemas.
        """

    def schema(self, schema_id: int) -> AvroSchema:
        """Return the schema with that id. Raises UnknownSchema, and NewerFormat for one of newer events."""

    def known(self, schema_ids: Collection[int]) -> dict[int, Any]:
        """Return id → schema for those of the ids that have one, whatever it is."""


class IncompatibleSchema(Refused):
    """Revert the table, or keep the change and run `headrace snapshot TABLE --from-scratch`."""


class UnknownSchema(HeadraceError):
    """Check that producer and consumer use the same registry."""


def open_registry(settings: Settings) -> Registry:
    """Return the registry that the settings name: by URL, else the topic `<prefix>.schemas`."""
    if not settings.registry.url:
        return TopicRegistry(settings)
    # Imported only here: its client loads HTTP and OAuth libraries, 15 MB and a fifth of a command's start time.
    from infra.schema_registry.url_registry import UrlRegistry  # noqa: PLC0415

    return UrlRegistry(settings.registry)


def prepare(settings: Settings) -> None:
    """Create the topic of a registry without a URL, which is done before the topics of a thousand tables.

    Kafka creates the files of topics one after another, and writes to the last one many seconds later.
    """
    if not settings.registry.url:
        topics.ensure_topic(settings.kafka, schemas_topic(settings.prefix), partitions=1)


def ensure_answers(settings: Settings) -> None:
    """Raise HeadraceError unless a registry answers at the settings' URL; without a URL there is nothing to check."""
    if settings.registry.url:
        from infra.schema_registry.url_registry import UrlRegistry  # noqa: PLC0415  as above

        with closing(UrlRegistry(settings.registry, retries=0)) as registry:
            registry.ensure_answers()


def ensure_registers(settings: Settings, topics: Collection[str]) -> None:
    """Raise HeadraceError if the registry at the settings' URL would register no schemas of producers.

    Changes nothing. What depends on a subject is known only of subjects that exist: those of `topics`.
    """
    if settings.registry.url:
        from infra.schema_registry.url_registry import UrlRegistry  # noqa: PLC0415  as above

        with closing(UrlRegistry(settings.registry, retries=0)) as registry:
            registry.ensure_registers([f"{topic}-value" for topic in topics])


class TopicRegistry:
    """Schemas in the compacted topic `<prefix>.schemas`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.kafka
        self._topic = schemas_topic(settings.prefix)
        self._log = topics.LogReader(settings.kafka, self._topic)
        self._schemas: dict[int, AvroSchema] = {}
        self._ids: dict[tuple[str, str], int] = {}
        self._latest: dict[str, int] = {}
        self._forgotten: set[str] = set()
        self._opened = False

    def register(self, subject: str, schema: AvroSchema) -> int:
        """See `Registry.register`."""
        text = canonical(schema)
        if subject not in self._forgotten and (subject, text) in self._ids:
            return self._ids[subject, text]
        self._open()
        if not self._is_registered(subject, text):
            if subject in self._latest and subject not in self._forgotten and (subject, text) not in self._ids:
                refuse_incompatible(subject, self._schemas[self._latest[subject]], schema)
            self._append([(subject, text)])
        self._forgotten.discard(subject)
        return self._ids[subject, text]

    def register_all(self, wanted: Sequence[tuple[str, AvroSchema]]) -> None:
        """See `Registry.register_all`."""
        self._open()
        lacking = []
        for subject, schema in wanted:
            text = canonical(schema)
            before = None if subject in self._forgotten else self._latest.get(subject)
            if not self._is_registered(subject, text) and (
                before is None or not incompatibilities(self._schemas[before], schema)
            ):
                lacking.append((subject, text))
        self._append(lacking)
        for subject, schema in wanted:
            if self._is_registered(subject, canonical(schema)):
                self._forgotten.discard(subject)

    def forget(self, subject: str) -> None:
        """See `Registry.forget`."""
        self._forgotten.add(subject)

    def schema(self, schema_id: int) -> AvroSchema:
        """See `Registry.schema`."""
        if schema_id not in self._schemas:
            self._catch_up()
        try:
            return readable(self._schemas[schema_id], schema_id)
        except KeyError:
            raise UnknownSchema(f"schema id {schema_id} is not in topic {self._topic}") from None

    def known(self, schema_ids: Collection[int]) -> dict[int, Any]:
        """See `Registry.known`."""
        if not self._schemas.keys() >= set(schema_ids):
            self._catch_up()
        return {number: self._schemas[number] for number in schema_ids if number in self._schemas}

    def _is_registered(self, subject: str, text: str) -> bool:
        """Whether the schema has an id, and is the latest if the subject was forgotten."""
        known = self._ids.get((subject, text))
        return known is not None and (subject not in self._forgotten or self._latest[subject] == known)

    def _open(self) -> None:
        if not self._opened:
            topics.ensure_topic(self._settings, self._topic, partitions=1)
            self._opened = True
        self._catch_up()

    def _append(self, entries: Sequence[tuple[str, str]]) -> None:
        if not entries:
            return
        with clients.translated(self._settings):
            # A duplicate schema is harmless, and an idempotent producer takes half a second to start.
            client = clients.producer(self._settings, acks="all", enable_idempotence=False)
            failures: list[Any] = []
            for subject, text in entries:
                client.produce(
                    self._topic,
                    partition=topics.ONLY_PARTITION,
                    # A unique key, so that compaction never removes a record whose offset is an id.
                    key=f"{subject}/{uuid.uuid4()}".encode(),
                    value=json.dumps(formats.SCHEMAS.write({"subject": subject, "schema": text})).encode(),
                    on_delivery=lambda error, _: failures.append(error) if error else None,
                )
                client.poll(0)
            client.flush()
            for failure in failures:
                raise clients.translate(failure, self._settings)
        self._catch_up()

    def _catch_up(self) -> None:
        for registered, subject, text in registrations(self._log, self._topic):
            self._schemas[registered] = json.loads(text)
            self._ids.setdefault((subject, text), registered)
            self._latest[subject] = self._ids[subject, text]


def registrations(reader: topics.LogReader, topic: str) -> Iterator[tuple[int, str, str]]:
    """Yield id, subject and schema text of each further record of the schemas topic."""
    for message in reader.read():
        registered = (message.offset() or 0) + 1
        try:
            entry = _entry(message.value() or b"", f"record {registered - 1} of topic {topic}")
        except Malformed as error:
            # Events with its id become dead letters; the other schemas stay usable.
            log.get(topic=topic).warning("schema record ignored", **{log.REASON: error.problem})
            continue
        yield registered, entry["subject"], entry["schema"]


def readable(schema: AvroSchema, schema_id: int) -> AvroSchema:
    """Return the schema; raise NewerFormat or OlderFormat if this headrace does not read its events."""
    if isinstance(schema, dict):  # a registry may have anything under an id
        require_format(schema, f"schema {schema_id}")
    return schema


def _entry(value: bytes, where: str) -> dict[str, Any]:
    """Return the fields of a record of the topic, among them subject and schema text."""
    try:
        entry = formats.SCHEMAS.read(json.loads(value), where)
        json.loads(entry["schema"])
        if isinstance(entry["subject"], str):
            return entry
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    raise Malformed(
        f"{where} is not a schema record of headrace", remedy="stop other programs from writing to that topic"
    )


def canonical(schema: AvroSchema) -> str:
    """Return the text of a schema by which equal registrations are recognized."""
    return json.dumps(schema, separators=(",", ":"), ensure_ascii=False)


def refuse_incompatible(subject: str, old: AvroSchema, new: AvroSchema) -> None:
    """Raise IncompatibleSchema unless readers of the old schema of `subject` can read both.

    Raises OlderFormat or NewerFormat if this headrace does not read the old one's events.
    """
    if isinstance(old, dict):
        require_format(old, f"the schema of {subject}")
    if changes := incompatibilities(old, new):
        raise IncompatibleSchema(f"{subject} changed incompatibly: {'; '.join(changes)}")

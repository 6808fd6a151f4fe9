"""Where Avro schemas are kept: a compacted topic, or a Confluent-compatible registry (`url_registry`).

In the topic a schema's id is the offset of its record plus one: the log gives every registration a number of its
own, the first of two equal ones counts, and nobody has to agree on anything else.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from infra.kafka import clients, topics
from infra.service import log
from infra.settings.model import Settings
from schemas import formats
from schemas.avro import FORMAT_PROPERTY
from schemas.compatibility import incompatibilities
from schemas.errors import HeadraceError, Malformed, Refused
from schemas.topics import schemas_topic

AvroSchema = dict[str, Any]


class Registry(Protocol):
    """Gives a schema its id, and an id its schema."""

    def register(self, subject: str, schema: AvroSchema) -> int:
        """Return the id of `schema` under `subject`, the same one each time.

        Called before anything is produced with it. Raises IncompatibleSchema when readers of the subject's latest
        schema could not read both; nothing is registered then.
        """

    def register_all(self, wanted: Sequence[tuple[str, AvroSchema]]) -> None:
        """Register many at once, where that is quicker than one by one; what is refused is left to `register`.

        To be called before `register` is called for each; that it was not, or twice, changes nothing.
        """

    def forget(self, subject: str) -> None:
        """Let the next schema of `subject` follow nothing: its topic is empty, so there is nothing to read with it.

        Ids given before keep their schemas.
        """

    def schema(self, schema_id: int) -> AvroSchema:
        """Return the schema with that id. Raises UnknownSchema, and NewerFormat for one of newer events."""


class IncompatibleSchema(Refused):
    """Change the table back or keep the change; then have it read anew with `headrace snapshot TABLE --anew`."""


class UnknownSchema(HeadraceError):
    """Check that producer and consumer use the same registry."""


def open_registry(settings: Settings) -> Registry:
    """Return the registry that the settings name: by URL, else the topic `<prefix>.schemas`."""
    if not settings.registry.url:
        return TopicRegistry(settings)
    # Its client loads an HTTP and an OAuth library: 15 MB, and a fifth of the time that a command takes to start.
    from infra.schema_registry.url_registry import UrlRegistry  # noqa: PLC0415

    return UrlRegistry(settings.registry)


def ensure_answers(settings: Settings) -> None:
    """Raise HeadraceError unless a registry answers at the settings' URL; one in a topic is Kafka's to answer for."""
    if settings.registry.url:
        from infra.schema_registry.url_registry import UrlRegistry  # noqa: PLC0415  as above

        UrlRegistry(settings.registry).ensure_answers()


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
        if not self._stands(subject, text):
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
            if not self._stands(subject, text) and (
                before is None or not incompatibilities(self._schemas[before], schema)
            ):
                lacking.append((subject, text))
        self._append(lacking)
        for subject, schema in wanted:
            if self._stands(subject, canonical(schema)):
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

    def _stands(self, subject: str, text: str) -> bool:
        """Whether the schema has its id, and is the latest where the subject is to follow nothing."""
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
            # A schema that is there twice is harmless, and an idempotent producer takes half a second to start.
            client = clients.producer(self._settings, acks="all", enable_idempotence=False)
            failures: list[Any] = []
            for subject, text in entries:
                client.produce(
                    self._topic,
                    partition=topics.ONLY_PARTITION,
                    # The key is unique, so that compaction never removes a record whose offset is somebody's id.
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
        for message in self._log.read():
            registered = (message.offset() or 0) + 1
            try:
                entry = _entry(message.value() or b"", f"record {registered - 1} of topic {self._topic}")
            except Malformed as error:
                # Events that name it are dead letters; nothing else of the topic is lost.
                log.get(topic=self._topic).warning("not a schema: left out", **{log.REASON: error.problem})
                continue
            identity = (entry["subject"], entry["schema"])
            self._schemas[registered] = json.loads(entry["schema"])
            self._ids.setdefault(identity, registered)
            self._latest[identity[0]] = self._ids[identity]


def readable(schema: AvroSchema, schema_id: int) -> AvroSchema:
    """Return a schema; raise NewerFormat where its events are in a form that this headrace does not know."""
    if isinstance(schema, dict):  # a registry may have anything under an id
        formats.EVENTS.require(schema.get(FORMAT_PROPERTY, 1), f"schema {schema_id}")
    return schema


def _entry(value: bytes, where: str) -> dict[str, Any]:
    """Return the subject and the schema's text, and what else a record of the topic has."""
    try:
        entry = formats.SCHEMAS.read(json.loads(value), where)
        json.loads(entry["schema"])
        if isinstance(entry["subject"], str):
            return entry
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    raise Malformed(f"{where} is no schema of headrace's", remedy="take away what else writes that topic")


def canonical(schema: AvroSchema) -> str:
    """Return the text of a schema by which registrations of it are told to be the same."""
    return json.dumps(schema, separators=(",", ":"), ensure_ascii=False)


def refuse_incompatible(subject: str, old: AvroSchema, new: AvroSchema) -> None:
    """Raise IncompatibleSchema unless readers of the old schema of `subject` can read both."""
    if changes := incompatibilities(old, new):
        raise IncompatibleSchema(f"{subject} changed incompatibly: {'; '.join(changes)}")

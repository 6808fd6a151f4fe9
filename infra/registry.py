"""Where Avro schemas are kept: a Confluent-compatible registry by URL, or a compacted topic.

In the topic a schema's id is the offset of its record plus one: the log gives every registration a number of its
own, the first of two equal ones counts, and nobody has to agree on anything else.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from infra import kafka, topics
from infra.settings import RegistrySettings, Settings
from schemas import formats
from schemas.avro import FORMAT_PROPERTY
from schemas.compatibility import incompatibilities
from schemas.errors import HeadraceError, Malformed, Refused, Unavailable
from schemas.topics import schemas_topic

AvroSchema = dict[str, Any]

_ANSWER_SECONDS: Final = 10
"""How long a registry may take to answer."""


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
    return UrlRegistry(settings.registry) if settings.registry.url else TopicRegistry(settings)


def ensure_answers(settings: Settings) -> None:
    """Raise HeadraceError unless a registry answers at the settings' URL; one in a topic is Kafka's to answer for."""
    if settings.registry.url:
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
        text = _canonical(schema)
        if subject not in self._forgotten and (subject, text) in self._ids:
            return self._ids[subject, text]
        self._open()
        if not self._stands(subject, text):
            if subject in self._latest and subject not in self._forgotten and (subject, text) not in self._ids:
                _refuse_incompatible(subject, self._schemas[self._latest[subject]], schema)
            self._append([(subject, text)])
        self._forgotten.discard(subject)
        return self._ids[subject, text]

    def register_all(self, wanted: Sequence[tuple[str, AvroSchema]]) -> None:
        """See `Registry.register_all`."""
        self._open()
        lacking = []
        for subject, schema in wanted:
            text = _canonical(schema)
            before = None if subject in self._forgotten else self._latest.get(subject)
            if not self._stands(subject, text) and (
                before is None or not incompatibilities(self._schemas[before], schema)
            ):
                lacking.append((subject, text))
        self._append(lacking)
        for subject, schema in wanted:
            if self._stands(subject, _canonical(schema)):
                self._forgotten.discard(subject)

    def forget(self, subject: str) -> None:
        """See `Registry.forget`."""
        self._forgotten.add(subject)

    def schema(self, schema_id: int) -> AvroSchema:
        """See `Registry.schema`."""
        if schema_id not in self._schemas:
            self._catch_up()
        try:
            return _readable(self._schemas[schema_id], schema_id)
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
        with kafka.translated(self._settings):
            # A schema that is there twice is harmless, and an idempotent producer takes half a second to start.
            client = kafka.producer(self._settings, acks="all", enable_idempotence=False)
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
                raise kafka.translate(failure, self._settings)
        self._catch_up()

    def _catch_up(self) -> None:
        for message in self._log.read():
            registered = (message.offset() or 0) + 1
            entry = _entry(message.value() or b"", f"record {registered - 1} of topic {self._topic}")
            identity = (entry["subject"], entry["schema"])
            self._schemas[registered] = json.loads(entry["schema"])
            self._ids.setdefault(identity, registered)
            self._latest[entry["subject"]] = self._ids[identity]


class UrlRegistry:
    """A Confluent-compatible registry; it is asked seldom, so each question opens a connection of its own."""

    def __init__(self, settings: RegistrySettings) -> None:
        # Without a timeout a registry that accepts a connection and says nothing holds up a process for good.
        configuration: dict[str, Any] = {"url": settings.url, "timeout": _ANSWER_SECONDS}
        if settings.user:
            configuration["basic.auth.user.info"] = f"{settings.user}:{settings.password.get_secret_value()}"
        self._url = _without_credentials(settings.url)
        self._configuration = configuration
        self._forgotten: set[str] = set()

    def register(self, subject: str, schema: AvroSchema) -> int:
        """See `Registry.register`."""
        with self._client() as client:
            if subject in self._forgotten:
                return self._register_anew(client, subject, schema)
            try:
                latest = json.loads(client.get_latest_version(subject).schema.schema_str or "")
            except SchemaRegistryError as error:
                if error.http_status_code != 404:
                    raise
            else:
                _refuse_incompatible(subject, latest, schema)
            registered: int = client.register_schema(subject, Schema(_canonical(schema), "AVRO"))
            return registered

    def register_all(self, wanted: Sequence[tuple[str, AvroSchema]]) -> None:
        """See `Registry.register_all`; a registry takes one at a time."""

    def forget(self, subject: str) -> None:
        """See `Registry.forget`."""
        self._forgotten.add(subject)

    def schema(self, schema_id: int) -> AvroSchema:
        """See `Registry.schema`."""
        with self._client() as client:
            try:
                found: AvroSchema = json.loads(client.get_schema(schema_id).schema_str or "")
            except SchemaRegistryError as error:
                if error.http_status_code != 404:
                    raise
                raise UnknownSchema(f"schema id {schema_id} is not in the registry at {self._url}") from error
            return _readable(found, schema_id)

    def ensure_answers(self) -> None:
        """Raise HeadraceError unless a registry answers there: one question, not repeated."""
        self._configuration["max.retries"] = 0
        with self._client() as client:
            if not isinstance(client.get_subjects(), list):
                raise HeadraceError(
                    f"what answers at {self._url} is no schema registry", remedy="check registry.url in the settings"
                )

    def _register_anew(self, client: SchemaRegistryClient, subject: str, schema: AvroSchema) -> int:
        """Make `schema` the latest of `subject`, whatever it had; ids given before keep their schemas."""
        mine = Schema(_canonical(schema), "AVRO")
        try:
            registered: int = client.register_schema(subject, mine)
            stands = client.get_latest_version(subject).schema_id == registered
        except SchemaRegistryError as error:
            if error.http_status_code != 409:
                raise
            stands = False  # the registry compares too, with what it has under the subject
        if not stands:
            # An older version registered again is not the latest. Both ends with the subject's history.
            client.delete_subject(subject)
            registered = client.register_schema(subject, mine)
        self._forgotten.discard(subject)
        return registered

    @contextmanager
    def _client(self) -> Iterator[SchemaRegistryClient]:
        """Give a client, closed at the end, and turn what it raises into headrace's errors."""
        try:
            with SchemaRegistryClient(self._configuration) as client:
                yield client
        except HeadraceError:
            raise
        except SchemaRegistryError as error:
            raise HeadraceError(
                f"registry at {self._url}: {error.error_message}", remedy="see the registry's own log"
            ) from error
        except Exception as error:
            # Whatever else is raised is the HTTP client's, which confluent-kafka chooses and does not export.
            raise Unavailable(
                f"registry at {self._url} does not answer: {' '.join(str(error).split())}",
                remedy="check registry.url in the settings; empty keeps schemas in a topic",
            ) from error


def _entry(value: bytes, where: str) -> dict[str, Any]:
    """Return the subject and the schema's text, and what else a record of the topic has."""
    try:
        entry = formats.SCHEMAS.read(json.loads(value), where)
        json.loads(entry["schema"])
        if isinstance(entry["subject"], str):
            return entry
    except (ValueError, LookupError, TypeError):
        pass
    raise Malformed(f"{where} is no schema of headrace's", remedy="take away what else writes that topic")


def _readable(schema: AvroSchema, schema_id: int) -> AvroSchema:
    formats.EVENTS.require(schema.get(FORMAT_PROPERTY, 1), f"schema {schema_id}")
    return schema


def _without_credentials(url: str) -> str:
    """Return the url as messages may show it."""
    scheme, separator, rest = url.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _canonical(schema: AvroSchema) -> str:
    return json.dumps(schema, separators=(",", ":"), ensure_ascii=False)


def _refuse_incompatible(subject: str, old: AvroSchema, new: AvroSchema) -> None:
    if changes := incompatibilities(old, new):
        raise IncompatibleSchema(f"{subject} changed incompatibly: {'; '.join(changes)}")

"""Runs the producer of a git storage: walks it once, and publishes its repositories between start and end marks.

A storage has one walk at a time, by its `transactional.id`: a second walk takes over, and the first ends as fenced.
A walk that was stopped or killed is not resumed: the next walk starts from the beginning, under the next number.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import closing
from typing import Any, Final

from infra.kafka import clients, topic_requirements
from infra.kafka.topic_configurations import TopicConfigurations
from infra.kafka.topics import STATE, LogReader, ensure_topic, with_records
from infra.schema_registry.topic_registry import Registry, open_registry
from infra.service import interrupts, log
from infra.settings.model import Settings
from infra.settings.storage_settings import StorageSettings, VirtualStorageSettings
from infra.state.positions import SnapshotState, record_key
from producers.publish.kafka_transaction import Relay
from producers.publish.registry_check import require_same_registry_of_walks
from producers.walk.directory import Found, walk_directory
from producers.walk.events import RELATION, WalkEncoder, source_name
from producers.walk.gitaly import walk_gitaly
from producers.walk.stale_rows import leftovers
from schemas.errors import Fenced, HeadraceError, Interrupted, UsageError
from schemas.gitlab_schemas import PRAEFECT
from schemas.lazy_dataclass import dataclass
from schemas.topics import positions_topic, table_topic

_COMMIT_EVENTS: Final = 10_000
_COMMIT_SECONDS: Final = 1.0
"""A Kafka transaction is written after this many events, or when the oldest has waited this long."""

_PROGRESS_SECONDS: Final = 3.0
_LOGGED_PROBLEMS: Final = 100
"""The number of a walk's problems that are logged; all of them are in the topic."""


class WalkIncomplete(HeadraceError):
    """Make them readable for this user, then walk again; until then the walk is incomplete."""


class WalksFailed(HeadraceError):
    """The other storages were walked. Fix these and walk again; a walk can safely be repeated."""


class WalkState(SnapshotState):
    """The last walk of a storage, recorded in the positions topic like the snapshot of a table.

    `source` is the virtual storage, `table` the storage, `rows` the number of repositories found so far, and `done`
    whether the walk has its end mark.
    """

    walk_id: int
    problems: int = 0


@dataclass(frozen=True)
class Walked:
    """A complete walk, which read every directory; `removed` counts rows of earlier walks."""

    storage: str
    walk_id: int
    repositories: int
    problems: int
    removed: int


def storage_walk_topic(settings: Settings) -> str:
    """Return the topic of all storage walks."""
    return table_topic(settings.prefix, PRAEFECT, "", RELATION.schema, RELATION.table)


def virtual_storage_section(settings: Settings, virtual_storage: str) -> VirtualStorageSettings:
    """Return the settings of a virtual storage; raises UsageError for an unknown name."""
    section = settings.virtual_storages.get(virtual_storage)
    if section is None:
        known = ", ".join(sorted(settings.virtual_storages)) or "none"
        raise UsageError(
            f"no virtual storage named {virtual_storage!r} in the settings (configured: {known})",
            remedy=f"add [virtual_storages.{virtual_storage}] or use one of those names",
        )
    return section


def walk(
    settings: Settings, virtual_storage: str, stop: threading.Event, *, all_storages: bool = False
) -> list[Walked]:
    """Walk the primary storage of `virtual_storage`, or all its storages, the primary first; return the walks.

    A storage that fails does not stop the others. Its error is raised after them: unchanged if only one storage was to
    be walked, else as WalksFailed. Unreadable directories are such an error (WalkIncomplete). Raises UsageError for an
    unknown virtual storage, Interrupted when `stop` was set before the end.
    """
    section = virtual_storage_section(settings, virtual_storage)
    clients.ensure_reachable(settings.kafka)
    require_same_registry_of_walks(settings)
    registry = open_registry(settings)
    others = sorted(section.storages.keys() - {section.primary}) if all_storages else []
    failures: dict[str, HeadraceError] = {}
    walked = []
    for storage in (section.primary, *others):
        lines = log.get(**{log.SOURCE: virtual_storage}, storage=storage)
        try:
            walked.append(_Walk(settings, registry, virtual_storage, storage, stop, lines).run())
        except Interrupted:
            raise
        except HeadraceError as error:
            lines.error("walk failed", **{log.REASON: str(error)})
            failures[storage] = error
    if failures and not others:
        raise failures[section.primary]
    if failures:
        problems = ", ".join(f"{storage} ({error.problem})" for storage, error in failures.items())
        raise WalksFailed(f"{len(failures)} of {len(others) + 1} storages of {virtual_storage} failed: {problems}")
    return walked


class _Walk:
    """One walk of one storage."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        virtual_storage: str,
        storage: str,
        stop: threading.Event,
        lines: log.Log,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._virtual_storage = virtual_storage
        self._storage = storage
        self._section = settings.virtual_storages[virtual_storage]
        self._stop = stop
        self._log = lines
        self._registered: dict[int, str] = {}
        self._source = source_name(virtual_storage, storage)
        self._topic = storage_walk_topic(settings)
        self._partitions = 0

    def run(self) -> Walked:
        """Walk to the end, and publish. Raises WalkIncomplete after the end mark of an incomplete walk."""
        kafka_settings = self._settings.kafka
        positions = positions_topic(self._settings.prefix)
        ensure_topic(kafka_settings, positions, partitions=1, config=STATE)
        self._partitions = ensure_topic(kafka_settings, self._topic)
        topic_requirements.require(TopicConfigurations(kafka_settings), [self._topic], [positions])
        relay = Relay(kafka_settings, f"{self._settings.prefix}.{self._source}", positions)
        with closing(relay):
            try:
                # Only this process can write the storage's records from here on.
                last = self._last_walk(positions)
                walk_id = last.walk_id + 1 if last is not None else 1
                encoder = WalkEncoder(
                    self._registry,
                    self._topic,
                    self._virtual_storage,
                    self._storage,
                    walk_id=walk_id,
                    is_primary=self._storage == self._section.primary,
                    partitions=self._partitions,
                )
                kept = last.registered if last is not None and with_records(kafka_settings, [self._topic]) else {}
                self._registered = {**kept, **encoder.registered}
                return self._publish(relay, encoder, walk_id)
            except Fenced as error:
                raise Fenced(f"another walk of {self._source} took over") from error

    def _publish(self, relay: Relay, encoder: WalkEncoder, walk_id: int) -> Walked:
        # No transaction is open while the storage is read: a slow disk could exceed its timeout.
        self._send(relay, encoder, walk_id, encoder.start(), done=False)
        self._log.info("walking", walk_id=walk_id)
        waiting: list[dict[str, Any]] = []
        started = sent = logged = time.monotonic()
        first_unread = ""
        with closing(self._found()) as walk:
            for found in walk:
                if self._stop.is_set():
                    raise Interrupted(f"the walk of {self._source} was stopped before its end")
                record, problem = encoder.found(found)
                waiting.append(record)
                if encoder.unread and not first_unread:
                    first_unread = problem or ""
                if problem is not None and encoder.problems <= _LOGGED_PROBLEMS:
                    self._log.warning("path not recorded as repository", **{log.REASON: problem})
                now = time.monotonic()
                if len(waiting) >= _COMMIT_EVENTS or now > sent + _COMMIT_SECONDS:
                    self._send(relay, encoder, walk_id, waiting, done=False)
                    waiting, sent = [], now
                if now > logged + _PROGRESS_SECONDS:
                    logged = now
                    self._log.info("walking", walk_id=walk_id, **_figures(encoder, now - started))
        self._send(relay, encoder, walk_id, waiting, done=False)
        waiting = [] if encoder.unread else self._removals(encoder, walk_id)
        self._send(relay, encoder, walk_id, waiting + encoder.end(), done=True)
        self._log.info("walked", walk_id=walk_id, **_figures(encoder, time.monotonic() - started))
        if encoder.unread:
            raise WalkIncomplete(
                f"{encoder.unread} directories of {self._source} could not be read; the first is {first_unread}"
            )
        return Walked(self._storage, walk_id, encoder.repositories, encoder.problems, encoder.removed)

    def _removals(self, encoder: WalkEncoder, walk_id: int) -> list[dict[str, Any]]:
        """Return the records that remove rows whose repositories are no longer in the storage."""
        rows = leftovers(self._settings.kafka, self._topic, self._source, walk_id, self._partitions)
        return [record for partition, key in rows for record in encoder.removed_row(partition, key)]

    def _found(self) -> Generator[Found, None, None]:
        section: StorageSettings = self._section.storages[self._storage]
        if section.path is not None:
            return walk_directory(section.path)
        return walk_gitaly(self._storage, section, self._stop)

    def _send(
        self, relay: Relay, encoder: WalkEncoder, walk_id: int, records: list[dict[str, Any]], *, done: bool
    ) -> None:
        """Publish records and the walk's progress in one Kafka transaction."""
        state = WalkState(
            source=self._virtual_storage,
            table=self._storage,
            topic=self._topic,
            rows=encoder.repositories,
            problems=encoder.problems,
            done=done,
            chunks_done=int(done),
            chunks=1,
            walk_id=walk_id,
            registered=self._registered,
        )
        with interrupts.finishing():
            relay.send(self._topic, records)
            relay.record([(record_key(self._virtual_storage, self._storage), state)])
            relay.commit()

    def _last_walk(self, positions: str) -> WalkState | None:
        """Return the record of the storage's last walk, None before the first."""
        key = record_key(self._virtual_storage, self._storage)
        last: WalkState | None = None
        for message in LogReader(self._settings.kafka, positions).read():
            if message.key() == key and (value := message.value()) is not None:
                last = WalkState.model_validate_json(value)
        return last


def _figures(encoder: WalkEncoder, seconds: float) -> dict[str, object]:
    found = encoder.repositories + encoder.problems
    return {
        "repositories": encoder.repositories,
        "problems": encoder.problems,
        "removed": encoder.removed,
        "per_second": round(found / seconds) if seconds else found,
    }

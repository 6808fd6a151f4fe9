"""Observes everything that the page shows, for all viewers together, and describes it once a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from consumers.contract.external import WorkStatus
from consumers.delivery.topics import source_topics
from consumers.ledger.owner_lookup import Answer, Answers
from consumers.ledger.recorded import Recorded
from consumers.operations import catalog
from consumers.operations.overview.source_status import SlotView, described_source
from consumers.operations.overview.status_models import MigrationStatus, SourceStatus
from consumers.operations.status import Known, Placed, described, described_broken, placed
from consumers.web.curves import SECONDS, RateCurves
from consumers.web.database_view import DatabaseView
from consumers.web.documents import Curves, Snapshot, TopicStatus, WatchedMigration, WatchedSource
from consumers.web.kafka_view import KafkaView
from consumers.web.snapshot_eta import SnapshotEta
from consumers.web.watcher import WATCHED_SECONDS, Audience, Watcher
from infra.postgres.control import Ownership
from infra.settings.model import Settings
from infra.state.positions import StreamState
from schemas import formats
from schemas.errors import HeadraceError
from schemas.topics import group_name

_FRESH_SECONDS: Final = 1.0
"""How old a snapshot may be that another viewer gets, too."""
_PATIENCE_SECONDS: Final = 5.0
"""How long the first viewer waits for servers; later ones get what is known."""
_MOST_TABLES: Final = 50
"""The tables of a source that the page shows while they are copied."""


class Observation:
    """Watches Kafka and every database of the settings while someone asks for snapshots."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        self._settings = settings
        self._clock = clock
        self._audience = Audience(clock)
        kinds = list(catalog.migrations(settings).values())
        names = {
            topic
            for kind in kinds
            for database in catalog.listing(settings, kind.gitlab_schema)
            for topic in source_topics(settings, kind, database)
        }
        self._kafka = KafkaView(settings, names, [group_name(settings.prefix, kind.name) for kind in kinds], clock)
        self._databases = {
            name: DatabaseView(
                settings,
                name,
                self._stream_of(name),
                [kind for kind in kinds if kind.own_tables and kind.gitlab_schema in section.gitlab_schemas],
                clock,
            )
            for name, section in settings.databases.items()
        }
        self._watchers = [
            Watcher("Kafka", self._kafka.look, self._kafka.rest, self._audience, clock=clock),
            *(
                Watcher(f"database {name}", view.look, view.rest, self._audience, clock=clock)
                for name, view in self._databases.items()
            ),
        ]
        self._lock = threading.Lock()
        self._curves = RateCurves(clock)
        self._etas = SnapshotEta()
        self._made: tuple[float, bytes] = float("-inf"), b""

    def start(self) -> None:
        """Start watching; nothing is asked before the first request."""
        for watcher in self._watchers:
            watcher.start()

    def close(self, seconds: float = 2.0) -> None:
        """End watching, and close the connections."""
        self._audience.leave()
        for watcher in self._watchers:
            watcher.join(seconds)

    def snapshot(self) -> bytes:
        """Return the Snapshot as JSON."""
        self._audience.arrive()
        deadline = self._clock() + _PATIENCE_SECONDS
        if deadline - self._made[0] > WATCHED_SECONDS:
            for watcher in self._watchers:
                watcher.looked(max(0.0, deadline - self._clock()))
        with self._lock:
            made_at, document = self._made
            if self._clock() - made_at >= _FRESH_SECONDS:
                found = self._described()
                self._curves.add({f"{one.database}/{one.name}": one.rate for one in found.migrations})
                document = found.model_dump_json().encode()
                self._made = self._clock(), document
        return document

    def curves(self) -> Curves:
        """Return the rates of the last minutes."""
        with self._lock:
            return Curves(seconds=SECONDS, curves=self._curves.read())

    def _described(self) -> Snapshot:
        problems = [watcher.problem for watcher in self._watchers if watcher.problem is not None]
        migrations: list[MigrationStatus] = []
        try:
            migrations = [described(self._settings, each, self._known(each)) for each in self._placed()]
        except HeadraceError as error:
            problems.append(str(error))
        migrations += [described_broken(entry) for _, entry in sorted(catalog.broken(self._settings).items())]
        verified = {name: view.verified for name, view in self._databases.items()}
        return Snapshot(
            at=datetime.now(UTC),
            version=formats.PROGRAM,
            prefix=self._settings.prefix,
            problems=problems,
            migrations=[
                WatchedMigration(**dict(one), verified=verified.get(one.database, {}).get(one.name))
                for one in migrations
            ],
            sources=list(self._sources()),
            topics=list(self._topics(migrations)),
        )

    def _placed(self) -> Iterator[Placed]:
        def owning(_settings: Settings, names: Sequence[str], gitlab_schema: str) -> str | None:
            return self._answers(names).owner(gitlab_schema)

        return placed(self._settings, owning)

    def _answers(self, names: Sequence[str]) -> Answers:
        """Return what the databases said last about the owners."""
        views = {name: self._databases[name] for name in names}
        return Answers(
            tuple(
                Answer(name, view.records.ownership if view.records is not None else Ownership(None, False, {}))
                for name, view in views.items()
                if view.answered
            ),
            tuple(name for name, view in views.items() if not view.answered),
        )

    def _known(self, place: Placed) -> Known:
        kind, view = place.kind, self._databases[place.database]
        topics = source_topics(self._settings, kind, place.database)
        recorded = view.records.migrations.get(kind.name) if view.records is not None else None
        return Known(
            recorded=recorded or Recorded(),
            members=self._kafka.members.get(group_name(self._settings.prefix, kind.name), []),
            ends={each: end for each, end in self._kafka.ends.items() if each.topic in topics},
            work=view.work.get(kind.name, WorkStatus()),
            error=None if view.answered else f"database {place.database} does not answer: this is older",
        )

    def _sources(self) -> Iterator[WatchedSource]:
        for name, state in sorted(self._kafka.sources.items()):
            view = self._databases.get(name)
            slot, waits_for = (view.slot, view.waits_for) if view is not None else (SlotView(), [])
            found = described_source(self._settings, name, state, slot, waits_for)
            # Those with progress first: a snapshot of a thousand tables is under way in a few.
            shown = sorted(found.copying, key=lambda each: (each.stopped is None, not each.chunks_done, each.table))
            yield WatchedSource(
                **{**dict(found), "copying": shown[:_MOST_TABLES]}, snapshot_eta_seconds=self._snapshot_eta(found)
            )

    def _snapshot_eta(self, found: SourceStatus) -> float | None:
        if found.snapshot is None or all(each.stopped for each in found.copying):
            self._etas.forget(found.name)
            return None
        return self._etas.estimate(found.name, self._clock(), found.snapshot.chunks_done, found.snapshot.chunks)

    def _topics(self, migrations: Sequence[MigrationStatus]) -> Iterator[TopicStatus]:
        ends: dict[str, int] = {}
        for place, end in self._kafka.ends.items():
            ends[place.topic] = ends.get(place.topic, 0) + end
        read = {partition.topic for one in migrations for partition in one.partitions}
        writers: dict[str, list[str]] = {}
        for name, state in self._kafka.sources.items():
            for snapshot in state.snapshots.values():
                writers.setdefault(snapshot.topic, []).append(name)
        for topic in sorted(read):
            yield TopicStatus(
                name=topic,
                events=ends.get(topic, 0),
                rate=round(self._kafka.rates.get(topic, 0.0), 1),
                sources=sorted(writers.get(topic, [])),
            )

    def _stream_of(self, name: str) -> Callable[[], StreamState | None]:
        def stream() -> StreamState | None:
            found = self._kafka.sources.get(name)
            return found.stream if found is not None else None

        return stream

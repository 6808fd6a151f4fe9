"""Describes a source: from its producer's records in Kafka, and as its database sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import psycopg

from consumers.operations.overview.status_models import SnapshotStatus, SourceStatus, TableStatus
from infra.postgres import connect, standbys
from infra.settings.model import Settings
from infra.state.positions import SnapshotState, SourceState, StreamState
from schemas.errors import HeadraceError
from schemas.lazy_dataclass import dataclass
from schemas.positions import format_lsn

_SEEN: Final = """
    SELECT greatest(0, pg_wal_lsn_diff(now_at.lsn, %(confirmed)s::pg_lsn))::bigint,
           CASE WHEN %(ts_ms)s > 0 THEN
               round(greatest(0, extract(epoch FROM clock_timestamp()) - %(ts_ms)s / 1000.0), 1)::float8 END,
           coalesce(CASE WHEN s.confirmed_flush_lsn IS NOT NULL THEN s.wal_status END, 'missing'),
           greatest(0, pg_wal_lsn_diff(now_at.lsn, s.restart_lsn))::bigint,
           round(CASE WHEN s.wal_status = 'lost' THEN 0
                      ELSE greatest(0, s.safe_wal_size) / nullif(%(rate)s::numeric, 0) END)::bigint,
           CASE WHEN s.wal_status = 'lost' THEN 0 ELSE greatest(0, s.safe_wal_size) END::bigint
      FROM (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                        ELSE pg_current_wal_lsn() END) now_at(lsn)
      LEFT JOIN pg_replication_slots s ON s.slot_name = %(slot)s
"""
_MIB: Final = 1 << 20


@dataclass(frozen=True)
class SlotView:
    """What a source's database knows of its stream and slot, as in SourceStatus; each None if it does not respond."""

    lag_bytes: int | None = None
    lag_seconds: float | None = None
    slot_status: str | None = None
    retained_bytes: int | None = None
    lost_in_seconds: int | None = None
    left_bytes: int | None = None


def slot_view(connection: psycopg.Connection[Any], stream: StreamState) -> SlotView:
    """Ask a source's database about the slot of `stream`, in one statement; it does not say what the stream waits for.

    Raises psycopg.Error.
    """
    row = connection.execute(
        _SEEN,
        {
            "confirmed": format_lsn(stream.confirmed_lsn),
            "ts_ms": stream.ts_ms,
            "slot": stream.slot,
            "rate": stream.log_bytes_per_second,
        },
    ).fetchone()
    return SlotView(*row) if row else SlotView()


def asked_source(settings: Settings, name: str, state: SourceState) -> SourceStatus:
    """Return the status of source `name`, whose database is asked over a connection of its own."""
    return described_source(settings, name, state, *_asked(settings, name, state.stream))


def described_source(
    settings: Settings, name: str, state: SourceState, seen: SlotView, waits_for: list[str]
) -> SourceStatus:
    """Return the status of source `name`; `waits_for` lists the standbys whose confirmation the server waits for."""
    stream = state.stream
    section = settings.databases.get(name)
    return SourceStatus(
        name=name,
        slot=stream.slot if stream is not None else None,
        lsn=format_lsn(stream.commit_lsn) if stream is not None else None,
        lag_bytes=seen.lag_bytes,
        lag_seconds=seen.lag_seconds,
        slot_status=seen.slot_status,
        retained_bytes=seen.retained_bytes,
        lost_in_seconds=seen.lost_in_seconds,
        waits_for=waits_for,
        snapshot=_snapshot(state.snapshots),
        snapshot_throttled_by=stream.snapshot_throttled_by if stream is not None else None,
        snapshot_max_mb_per_second=section.snapshot.max_mb_per_second if section is not None else 0,
        left_bytes=seen.left_bytes,
        retained_limit_bytes=section.snapshot.max_retained_wal_mb * _MIB if section is not None else None,
        tables=len(state.snapshots),
        tables_done=sum(not each.under_way for each in state.snapshots.values()),
        copying=[_table(each) for each in state.snapshots.values() if each.under_way or each.stopped],
    )


def _asked(settings: Settings, name: str, stream: StreamState | None) -> tuple[SlotView, list[str]]:
    if name not in settings.databases or stream is None:
        return SlotView(), []
    try:
        with connect.session(settings.databases[name], name="status") as connection:
            return slot_view(connection, stream), standbys.awaited(connection, stream.slot)
    except HeadraceError:
        return SlotView(), []


def _snapshot(snapshots: Mapping[str, SnapshotState]) -> SnapshotStatus | None:
    """Return the snapshot in progress, else the sum over all that are done; None without snapshots."""
    if not snapshots:
        return None
    under_way = [snapshot for snapshot in snapshots.values() if snapshot.under_way]
    shown = under_way or list(snapshots.values())
    return SnapshotStatus(
        table=shown[0].table if len(shown) == 1 else f"{len(shown)} tables",
        chunks_done=sum(snapshot.chunks_done for snapshot in shown),
        chunks=sum(max(snapshot.chunks, snapshot.chunks_done) for snapshot in shown),
    )


def _table(state: SnapshotState) -> TableStatus:
    return TableStatus(
        table=state.table,
        rows=state.rows,
        chunks_done=state.chunks_done,
        chunks=max(state.chunks, state.chunks_done),
        stopped=state.stopped,
    )

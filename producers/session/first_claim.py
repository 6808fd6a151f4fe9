"""Withdraws a source's first claim of tables that another source claims at the same time.

A start reads the other sources' records before it writes its own, so two first starts may both find none. The positions
topic orders their records: at least the source that wrote last sees both, once it reads its own.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

import psycopg

from infra.postgres import control
from infra.state.positions import Positions, SourceState
from producers.publish.table_publisher import TableFeed
from producers.session import handover
from producers.session.commits import Commits
from producers.session.handover import Found, TwoSources

_AGAIN_SECONDS: Final = 0.05


def require_sole(
    sql: psycopg.Connection[Any],
    found: Found,
    feeds: Sequence[TableFeed],
    positions: Positions,
    commits: Commits,
    stop: threading.Event,
) -> None:
    """Raise TwoSources if another source has claimed a table of `feeds` that this one claims for the first time.

    Called after the claim is committed and before anything is published. The claim of these tables is withdrawn then,
    so that a later start of one source alone is not refused. Returns without an answer once `stop` is set.
    """
    fresh = [feed.table for feed in feeds if not feed.away and feed.table.name not in found.state.snapshots]
    identity = commits.identity
    sources = _shown(identity.source, identity.instance, {table.name for table in fresh}, positions, stop)
    try:
        handover.refuse_second_source(
            identity.source, fresh, found.scope.moved, sources, control.owners(sql) if sources else {}
        )
    except TwoSources:
        commits.commit([(table.name, None) for table in fresh])
        raise


def _shown(
    source: str, instance: str, names: set[str], positions: Positions, stop: threading.Event
) -> Mapping[str, SourceState]:
    """Return every source's state once it contains the claim of `names`; nothing if there is no claim, or on `stop`.

    A commit returns a moment before readers see it. Another producer of the source may have replaced the claim: the
    next commit reports that.
    """
    while names and not stop.is_set():
        sources = positions.sources()
        state = sources.get(source, SourceState())
        replaced = state.stream is not None and state.stream.instance != instance
        if replaced or names <= state.snapshots.keys():
            return sources
        stop.wait(_AGAIN_SECONDS)
    return {}

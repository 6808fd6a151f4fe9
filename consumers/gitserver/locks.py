"""Locks shared by all consumers on all machines: one per partition, and a limited number for clones.

They are session-level advisory locks in the target database, so a consumer's locks end with its session.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg

Connection = psycopg.Connection[Any]

_PARTITIONS: Final = 0x72687031
"""The first keys of the locks: "rhp1" and "rhc1" in ASCII."""
_CLONES: Final = 0x72686331


@contextmanager
def partition_lock(session: Connection, partition: int) -> Iterator[bool]:
    """Lock a partition; yields False at once if another consumer has it."""
    with _lock(session, _PARTITIONS, partition) as taken:
        yield taken


@contextmanager
def clone_slot(session: Connection, limit: int) -> Iterator[bool]:
    """Take one of `limit` slots; yields False at once if none is free."""
    for slot in random.sample(range(limit), limit):
        with _lock(session, _CLONES, slot) as taken:
            if taken:
                yield True
                return
    yield False


@contextmanager
def _lock(session: Connection, kind: int, number: int) -> Iterator[bool]:
    row = session.execute("SELECT pg_try_advisory_lock(%s::int, %s::int)", (kind, number)).fetchone()
    taken = row == (True,)
    try:
        yield taken
    finally:
        # A session that was lost, or is in a failed transaction, releases its locks when it ends.
        if taken and not session.closed:
            session.execute("SELECT pg_advisory_unlock(%s::int, %s::int)", (kind, number))

"""What all members on all machines share: who works on a partition, and how many clones are under way.

Advisory locks of the target database, held by a session: whatever becomes of a member, its locks end with it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg

Connection = psycopg.Connection[Any]

_PARTITIONS: Final = 0x72687031
"""The locks' first numbers: "rhp1" and "rhc1" in ASCII."""
_CLONES: Final = 0x72686331


@contextmanager
def partition_lock(session: Connection, partition: int) -> Iterator[bool]:
    """Take a partition for oneself; gives False, at once, when another member has it."""
    with _lock(session, _PARTITIONS, partition) as taken:
        yield taken


@contextmanager
def clone_slot(session: Connection, limit: int) -> Iterator[bool]:
    """Take one of `limit` slots; gives False, at once, when none is free."""
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
        # A session that was lost, or is in the middle of something that failed, frees its locks by its end.
        if taken and not session.closed:
            session.execute("SELECT pg_advisory_unlock(%s::int, %s::int)", (kind, number))

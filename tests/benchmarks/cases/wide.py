"""Snapshots of wide rows, of text and of jsonb: rate and peak memory, compared with Debezium on the same table.

A row of text is drawn from 4 MB of base64, and a document of jsonb is like the manifest of a container image, so that
neither PostgreSQL's compression nor Kafka's makes nothing of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, LiteralString

import psycopg
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # exported, but not by name
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from schemas.errors import HeadraceError
from tests.benchmarks.bench import TABLE, Bench, Site, median, median_or_none
from tests.benchmarks.debezium import Debezium, has_debezium
from tests.benchmarks.figures import Figure, Target
from tests.benchmarks.producing import Run, copied

_FULL: Final = 1_000_000
"""The `--rows` with which every width has all its rows; with fewer it has the same share of them."""
_FEWEST: Final = 3
_LIMIT: Final = Target(at_most=300)
"""The producer's memory in MB, whatever the width of the rows: a chunk ends at 32 MiB (docs/reference/events.md)."""
_RATE: Final = Target(at_least=1, ratio=True)
_TIMEOUT: Final = 30.0

_BLOCKS: Final[LiteralString] = """
CREATE TABLE blocks AS
SELECT n::int, (SELECT left(string_agg(encode(sha512(int8send(n * 12 + i)), 'base64'), ''), 1000)
                  FROM generate_series(1, 12) i) AS block
  FROM generate_series(0::bigint, 4095) n
"""
"""4,096 blocks of 1,000 characters. PostgreSQL's compression finds nothing in base64, as in most large texts that are
an image or an archive."""
_TEXT: Final[LiteralString] = f"""
UPDATE {TABLE} r SET wide = (
    SELECT string_agg((SELECT block FROM blocks WHERE n = abs(hashint8extended(i, r.id) %% 4096)::int), '')
      FROM generate_series(1::bigint, %s / 1000) i)
"""
_JSONB: Final[LiteralString] = f"""
UPDATE {TABLE} r SET wide = jsonb_build_object(
    'schemaVersion', 2, 'repository', jsonb_build_object('id', id, 'project', project_id, 'name', name), 'public', true,
    'layers', (SELECT jsonb_agg(jsonb_build_object(
                          'digest', 'sha256:' || encode(sha256(int8send(i) || int8send(r.id)), 'hex'),
                          'size', abs(hashint8extended(i, r.id) %% 100000000),
                          'created', r.created_at + i * interval '1 second',
                          'tags', jsonb_build_array('v' || i, 'build-' || r.id)))
                 FROM generate_series(1::bigint, %s / 174) i))
"""
"""A layer has about 174 characters as text."""


@dataclass(frozen=True, slots=True)
class _Width:
    """A table of wide rows: the type of the wide column, the bytes of its value as text (of jsonb: about), the number
    of rows, and the statement that fills the column, whose argument is that size.
    """

    type: LiteralString
    size: int
    rows: int
    fill: LiteralString

    def __str__(self) -> str:
        size = f"{self.size // 1000} kB" if self.size < 1_000_000 else f"{self.size // 1_000_000} MB"
        return f"{self.type} rows of {size}"


@dataclass(frozen=True, slots=True)
class _Pair:
    """Snapshots of the same table by headrace and Debezium, if that is available and can copy it."""

    ours: Run
    theirs: Run | None

    def __str__(self) -> str:
        return f"headrace {self.ours}" + (f"; Debezium {self.theirs}" if self.theirs is not None else "")


_WIDTHS: Final = (
    _Width("text", 2_000, 150_000, _TEXT),
    _Width("text", 50_000, 30_000, _TEXT),
    _Width("text", 1_000_000, 300, _TEXT),
    _Width("text", 20_000_000, 200, _TEXT),
    _Width("text", 100_000_000, 3, _TEXT),
    _Width("jsonb", 1_000, 100_000, _JSONB),
    _Width("jsonb", 100_000, 3_000, _JSONB),
)


def figures(bench: Bench) -> Iterator[Figure]:
    """Measure each width on a table of its own, which is dropped before the next: some have 4 GB."""
    _delete_topics_soon(bench)
    for width in _WIDTHS:
        yield from _measured(bench, width, max(_FEWEST, round(width.rows * min(1.0, bench.rows / _FULL))))


def _measured(bench: Bench, width: _Width, rows: int) -> Iterator[Figure]:
    name = f"wide_{width.type}_{width.size}"
    try:
        pairs = _pairs(bench, _filled(bench, name, width, rows), name, width, rows)
    finally:
        bench.drop_database(name)
    ours = [pair.ours for pair in pairs]
    theirs = [pair.theirs for pair in pairs if pair.theirs is not None]
    rate, peak = median(run.rate for run in ours), median(run.peak for run in ours)
    peer_rate, peer_peak = median_or_none(run.rate for run in theirs), median_or_none(run.peak for run in theirs)
    yield Figure(f"snapshot, {width}", rate, "rows/s", peer=peer_rate, target=_RATE)
    yield Figure(f"producer memory, {width}", peak, "MB", peer=peer_peak, target=_LIMIT, smaller=True)


def _delete_topics_soon(bench: Bench) -> None:
    """Have the broker remove the files of a deleted topic after a second, not a minute: those of the runs add up."""
    entry = ConfigEntry("log.segment.delete.delay.ms", "1000", incremental_operation=AlterConfigOpType.SET)
    broker = ConfigResource(ResourceType.BROKER, "1", incremental_configs=[entry])
    client = AdminClient({"bootstrap.servers": bench.stack.endpoints.bootstrap_servers})
    client.incremental_alter_configs([broker])[broker].result(_TIMEOUT)


def _filled(bench: Bench, name: str, width: _Width, rows: int) -> str:
    """Return the dsn of a database whose table has the wide column; its pages are as reading leaves them."""
    dsn = bench.database(name, rows)
    with bench.sql(dsn) as connection:
        connection.execute(f"ALTER TABLE {TABLE} ADD COLUMN wide {width.type}")
        connection.execute(_BLOCKS)
        connection.execute("ALTER TABLE blocks ADD PRIMARY KEY (n)")
        connection.execute("ANALYZE blocks")
        connection.execute(width.fill, (width.size,))
        connection.execute(f"VACUUM (ANALYZE) {TABLE}")
        connection.execute("CHECKPOINT")
        bench.say(f"{rows:,} {width}: {_sizes(connection)}")
    return dsn


def _sizes(connection: psycopg.Connection) -> str:
    row = connection.execute(
        f"SELECT avg(octet_length(wide::text)), avg(pg_column_size(wide)) FROM (SELECT wide FROM {TABLE} LIMIT 100) r"
    ).fetchone()
    assert row is not None
    return f"{row[0]:,.0f} bytes on average, {row[1]:,.0f} as stored"


def _pairs(bench: Bench, dsn: str, name: str, width: _Width, rows: int) -> list[_Pair]:
    """Return snapshots of the same table in turn; Debezium is left out after its first failure at this width."""
    failures: list[HeadraceError] = []

    def theirs(site: Site, number: int) -> Run | None:
        if failures or not has_debezium(bench):
            return None
        peer = Debezium(bench, site, f"dbz_{name}_{number}", snapshot=True, row_bytes=width.size)
        try:
            return peer.timed(rows)
        except HeadraceError as error:
            failures.append(error)
            bench.say(f"Debezium does not copy {width}, and is left out: {error}")
            return None
        finally:
            peer.drop()

    def pair(number: int) -> _Pair:
        site = Site(bench, dsn, f"{name}n{number}")
        # The second one finds the broker and the disk as the first one left them: each goes first now and then.
        first = theirs(site, number) if number % 2 else None
        ours = _copied(site)
        return _Pair(ours, first if number % 2 else theirs(site, number))

    return bench.repeated(f"{rows:,} {width}", pair, str)


def _copied(site: Site) -> Run:
    try:
        return copied(site)
    finally:
        site.drop()

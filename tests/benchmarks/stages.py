"""`python -m tests.benchmarks.stages`: processor seconds per million rows, for each codec, without Kafka.

Prints the process's own use, which other work on the machine hardly affects: the minimum of three passes.
"""

from __future__ import annotations

import argparse
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import psycopg

from infra.demo.gitlab import build
from infra.kafka.clients import RECORD_BYTES
from infra.postgres import copy_out
from infra.postgres.connect import connect
from infra.settings.model import DatabaseSettings
from infra.stack import embedded_stack
from producers.source.tables import CapturedTable, captured_tables
from producers.stream import pgoutput_fields
from producers.stream.messages import Changes
from producers.stream.pgoutput import Decoder
from schemas.codec.encoder import Encoder
from schemas.events import Op, Origin, Relation
from schemas.positions import Lsn

_TABLE = "public.container_repositories"
_RUN = 1000
"""Changes of a run, as in a transaction of the benchmark of catching up."""


def read_table(dsn: str, rows: int) -> tuple[CapturedTable, bytes, dict[str, float]]:
    """Return the demo's table in an empty database, its rows as COPY writes them, and the seconds to read them."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        build(connection, rows)
    settings = DatabaseSettings.model_validate({"dsn": dsn, "gitlab_schemas": ["gitlab_main"], "tables": [_TABLE]})
    with connect(dsn, name="stages", reading=True) as connection:
        table = captured_tables(connection, "stages", settings, "stages")[0]
        query = f"COPY {_TABLE} TO STDOUT".encode()

        def through_libpq(compiled: bool = True) -> copy_out.Lines:
            return copy_out.through_libpq(connection.pgconn, query, compiled=compiled)

        spent = {"one by one": seconds(rows, lambda: through_libpq(compiled=False))}
        if copy_out.possible(connection.pgconn):
            spent["through libpq in C"] = seconds(rows, through_libpq)
            spent["from its socket"] = seconds(rows, lambda: copy_out.copy_out(connection.pgconn, query))
        return table, through_libpq().data, spent


def described(relation: Relation) -> bytes:
    """Return the stream's message that describes a relation."""
    head = struct.pack("!I", relation.oid) + f"{relation.schema}\0{relation.table}\0".encode()
    columns = (
        b"\0" + column.name.encode() + b"\0" + struct.pack("!Ii", column.type_oid, column.type_modifier)
        for column in relation.columns
    )
    return b"R" + head + b"d" + struct.pack("!H", len(relation.columns)) + b"".join(columns)


def inserted(relation: Relation, line: bytes) -> bytes:
    """Return the stream's message for a row that COPY wrote; the demo's rows contain nothing to escape."""
    fields = line.split(b"\t")
    cells = (b"n" if field == rb"\N" else b"t" + struct.pack("!I", len(field)) + field for field in fields)
    return b"I" + struct.pack("!IcH", relation.oid, b"N", len(fields)) + b"".join(cells)


@contextmanager
def rows_in_python(wanted: bool) -> Iterator[None]:
    """Let the stream's decoder make lists of values, as without the compiled codec."""
    kept = pgoutput_fields._tuple_row
    if wanted:
        pgoutput_fields._tuple_row = None
    try:
        yield
    finally:
        pgoutput_fields._tuple_row = kept


def seconds(rows: int, work: Callable[[], object]) -> float:
    """Return the processor seconds per million rows."""
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best / rows * 1e6


def measure(table: CapturedTable, data: bytes, *, compiled: bool) -> dict[str, float]:
    """Return the seconds of each stage with one codec."""
    relation = table.relation
    encoder = Encoder(
        relation,
        "gitlab_main",
        table.key,
        origin=Origin("d", "d"),
        value_schema_id=1,
        key_schema_id=2,
        compiled=compiled,
    )
    lines = data.split(b"\n")[:-1]
    messages = [inserted(relation, line) for line in lines]
    copy_prefix = encoder.copy_prefix(lsn=Lsn(1 << 40), ordinal=0, ts_ms=1_700_000_000_000)
    prefix = encoder.event_prefix(Op.CREATE, lsn=Lsn(1 << 40), xid=7, ts_ms=1_700_000_000_000)
    decoder = Decoder()
    decoder.decode(described(relation))

    def stream() -> None:
        for ordinal, message in enumerate(messages):
            encoder.change(prefix, ordinal, 1_700_000_000_000, decoder.decode(message).after)  # type: ignore[union-attr]

    def stream_in_runs() -> None:
        for start in range(0, len(messages), _RUN):
            run, _ = decoder.read(messages[start : start + _RUN], 0)
            if isinstance(run, Changes) and encoder.plan is not None:  # a rest of one is not
                limits = (start, 1_700_000_000_000, False, RECORD_BYTES)
                mask = run.decoder.identity_mask
                encoder.plan.changes(run.payloads, 0, run.place + 4, mask, (prefix,) * 4, *limits, [])

    with rows_in_python(not compiled):
        spent = {
            "snapshot: lines of COPY to records": seconds(
                len(lines), lambda: encoder.encode_copy_chunk(data, copy_prefix)
            ),
            "stream: messages to records": seconds(len(lines), stream),
        }
        if compiled:
            spent["stream: messages to records, in runs"] = seconds(len(lines), stream_in_runs)
        return spent


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each stage and codec."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    rows = parser.parse_args(arguments).rows
    with embedded_stack() as stack:
        report(stack.postgres.create_database("stages"), rows)


def report(dsn: str, rows: int) -> None:
    """Measure so many rows in an empty database, and print the lines."""
    table, data, reading = read_table(dsn, rows)
    for way, read in reading.items():
        print(f"{'':8}{'snapshot: lines from the server, ' + way:52}{read:8.2f} s")
    for compiled in (False, True)[: len(reading)]:
        for stage, spent in measure(table, data, compiled=compiled).items():
            print(f"{'C' if compiled else 'Python':8}{stage:52}{spent:8.2f} s")


if __name__ == "__main__":
    main()

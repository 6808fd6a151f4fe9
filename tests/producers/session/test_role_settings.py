"""A source whose role or database has its own settings: each headrace session sets what it relies on."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from functools import partial

import pytest

from consumers.compare.comparison import compare
from consumers.testing.waiting import until
from infra.postgres.connect import connect
from infra.state.positions import Positions
from infra.state.snapshot_requests import SnapshotRequest
from producers.session.check import hindrances, outlook
from producers.session.resnapshot_request import ask
from schemas.errors import Unavailable
from tests.conftest import Database
from tests.producers.folding import states
from tests.producers.sources import Source, copy_all, running

pytestmark = pytest.mark.stack

NewSource = Callable[..., Source]

HARMFUL = {
    "search_path": "planted, public",
    "row_security": "on",
    "client_min_messages": "error",
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
    "statement_timeout": "50ms",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "1ms",
    "idle_session_timeout": "1s",
    "transaction_timeout": "20ms",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Asia/Kolkata",
    "extra_float_digits": "-15",
    "bytea_output": "escape",
    "xmlbinary": "hex",
    "standard_conforming_strings": "off",
    "escape_string_warning": "off",
    "backslash_quote": "off",
    "array_nulls": "off",
    "quote_all_identifiers": "on",
    "transform_null_equals": "on",
    "synchronous_commit": "off",
    "client_encoding": "LATIN1",
}
PLANTED = """
CREATE SCHEMA planted;
CREATE FUNCTION planted.pg_current_snapshot() RETURNS pg_snapshot LANGUAGE sql AS $$ SELECT '10:10:'::pg_snapshot $$;
CREATE VIEW planted.pg_class AS SELECT 1 AS oid;
CREATE VIEW planted.pg_replication_slots AS SELECT 1 AS slot_name;
"""
FORMS = """
CREATE TABLE forms (id text PRIMARY KEY, b bytea, d date, ts timestamp, tz timestamptz, i interval, f float4, g float8,
                    r regclass, z timetz, a int[], t text, m money);
CREATE TABLE "Sel ect" (id int);
"""
VALUES = """
INSERT INTO forms SELECT %s || g, '\\x00ff5c', '2024-02-03', '2024-02-03 04:05:06.7', '2024-02-03 04:05:06.7+09',
    '1 year 2 mons -3 days 04:05:06.7', 0.1, 0.30000000000000004, '"Sel ect"'::regclass, '10:00+05', '{1,NULL}',
    E'back\\\\slash''q \\u20ac', 1234.56 FROM generate_series(1, 20) g
"""
FORM = {
    "b": r"\x00ff5c",
    "d": "2024-02-03",
    "ts": "2024-02-03 04:05:06.700000",
    "tz": "2024-02-02 19:05:06.700000+00:00",
    "i": "1 year 2 mons -3 days +04:05:06.7",
    "f": str(struct.unpack("<f", struct.pack("<f", 0.1))[0]),
    "g": "0.30000000000000004",
    "r": 'public."Sel ect"',
    "z": "10:00:00+05",
    "a": "{1,NULL}",
    "t": "back\\slash'q \u20ac",
    "m": "$1,234.56",
}
LARGE = "INSERT INTO large SELECT i, repeat('x', 30000) FROM generate_series(%s, %s + 999) i"
"""30 MB in one transaction: more than 20 ms to decode, and to copy."""


def test_source_is_read_despite_role_and_database_settings(new_source: NewSource, database: Database) -> None:
    source = new_source(
        f"{PLANTED} {FORMS} CREATE TABLE large (id int PRIMARY KEY, v text);"
        " ALTER TABLE large ALTER v SET STORAGE EXTERNAL",
        "public.forms",
        "public.large",
        snapshot={"chunk_rows": 1000},
    )
    application = source.connection
    application.execute(VALUES.encode(), ("copied \\' ",))
    application.execute(LARGE, (1, 1))
    known = {name for (name,) in application.execute("SELECT name FROM pg_settings")}
    for name, value in HARMFUL.items():
        if name in known:
            literal = value if "," in value else f"'{value}'"
            application.execute(f'ALTER DATABASE "{database.name}" SET {name} = {literal}'.encode())

    with running(source) as producer:
        producer.caught_up()
        application.execute(VALUES.encode(), ("streamed \\' ",))
        application.execute(LARGE, (1001, 1001))
        producer.caught_up()
        request = SnapshotRequest(table="public.forms", first=("copied \\' 1",), last=("copied \\' 1",))
        # On a busy machine their timeouts end a session before it can set its own.
        until(
            lambda: ask(source.settings, "main", request).startswith("requested at"), "a session", passing=Unavailable
        )
        producer.caught_up()
        until(lambda: not source.state().snapshots["public.forms"].under_way, "the row")
        for table in ("public.forms", "public.large"):
            compared = partial(compare, source.settings, "main", table, threading.Event())
            assert until(compared, "a session", passing=Unavailable).same

    copy_all(source)
    records = source.records("public.forms")
    assert states(records) == {"r": 21, "c": 20}
    assert states(source.require_equal("public.large")) == {"r": 1000, "c": 1000}
    forms = {
        tuple((name, str(value)) for name, value in record.event.after.items() if name != "id")
        for record in records
        if record.event is not None and record.event.after is not None
    }
    (form,) = forms  # a value has the same form in a chunk and in the stream
    assert dict(form) == FORM
    with connect(source.settings.database("main").dsn.get_secret_value(), name="test", reading=True) as connection:
        positions = Positions(source.settings.prefix, source.settings.kafka)
        assert hindrances(connection, source.settings, "main", positions) == []
        assert outlook(connection, source.settings, "main", positions) is not None

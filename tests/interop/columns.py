"""The columns of the tables that foreign programs read: every type of the table in docs/reference/events.md.

Each has the ends of its range, what its Avro type cannot represent, and null.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from tests.producers.every_type import OWN_SAMPLES, SAMPLES

TYPES: Final = """
CREATE EXTENSION citext;
CREATE TYPE mood AS ENUM ('sad', 'o,k', 'it''s "fine"', 'é');
CREATE DOMAIN short_text AS text CHECK (length(VALUE) < 100);
CREATE DOMAIN day AS date;
CREATE TYPE pair AS (a int, b text);
"""


@dataclass(frozen=True)
class Tried:
    """A column with a type as in CREATE TABLE, and values as text."""

    type: str
    values: tuple[str, ...]
    kind: str = ""
    """What the type is, where its name does not say it: an enum, a domain."""

    @property
    def name(self) -> str:
        return "v_" + re.sub(r"\W+", "_", self.type.replace("[]", " array")).strip("_")

    @property
    def label(self) -> str:
        return self.type + (f" ({self.kind})" if self.kind else "")


COLUMNS: Final = (
    Tried("boolean", SAMPLES["bool"]),
    Tried("smallint", SAMPLES["int2"]),
    Tried("integer", SAMPLES["int4"]),
    Tried("bigint", SAMPLES["int8"]),
    Tried("oid", SAMPLES["oid"]),
    Tried("xid", SAMPLES["xid"]),
    Tried("cid", SAMPLES["cid"]),
    Tried("real", SAMPLES["float4"]),
    Tried("double precision", SAMPLES["float8"]),
    Tried("numeric(12,3)", OWN_SAMPLES["numeric(12,3)"]),
    Tried("numeric(38,10)", ("9999999999999999999999999999.9999999999", "-0.0000000001", "NaN")),
    Tried("numeric", SAMPLES["numeric"]),
    Tried("uuid", SAMPLES["uuid"]),
    Tried("date", SAMPLES["date"]),
    Tried("time", SAMPLES["time"]),
    Tried("timestamp", SAMPLES["timestamp"]),
    Tried("timestamptz", SAMPLES["timestamptz"]),
    Tried("text", SAMPLES["text"]),
    Tried("varchar(10)", SAMPLES["varchar"]),
    Tried("char(5)", OWN_SAMPLES["char(5)"]),
    Tried("citext", OWN_SAMPLES["citext"]),
    Tried("json", SAMPLES["json"]),
    Tried("jsonb", SAMPLES["jsonb"]),
    Tried("bytea", SAMPLES["bytea"]),
    Tried("interval", SAMPLES["interval"]),
    Tried("integer[]", ("{1,2,NULL}", "{}", "{{1,2},{3,NULL}}")),
    Tried("text[]", OWN_SAMPLES["text[]"]),
    Tried("int4range", SAMPLES["int4range"]),
    Tried("mood", OWN_SAMPLES["mood"], "enum"),
    Tried("short_text", OWN_SAMPLES["short_text"], "domain of text"),
    Tried("day", OWN_SAMPLES["day"], "domain of date"),
    Tried("pair", OWN_SAMPLES["pair"], "composite"),
    Tried("inet", SAMPLES["inet"]),
)

"""Tables with every kind of key, copied in many chunks while rows change, end complete."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.producers.sources import Source, running

pytestmark = pytest.mark.stack

NewSource = Callable[..., Source]

_MIXED = "CASE i % 2 WHEN 0 THEN 'B' ELSE 'a' END || i"
_TWICE = "CASE i % 2 WHEN 0 THEN 'A' ELSE 'a' END || i / 2"
"""Texts of which every two are equal in citext, but not in the index."""

KINDS = {
    "citext_elsewhere": ("k ext.citext", "PRIMARY KEY (k)", f"({_MIXED})::ext.citext"),
    "domain_of_citext": ("k ext.word", "PRIMARY KEY (k)", f"({_MIXED})::ext.word"),
    "array_of_citext": ("k ext.citext[]", "PRIMARY KEY (k)", f"ARRAY[{_MIXED}]::ext.citext[]"),
    "composite": ("k ext.pair", "PRIMARY KEY (k)", "(i % 9, 'x' || i)::ext.pair"),
    "composite_and_more": ("k ext.pair, j int", "PRIMARY KEY (j, k)", "(i % 9, 'x' || i)::ext.pair, i % 4"),
    "tree_elsewhere": ("k ext.ltree", "PRIMARY KEY (k)", "('top.n' || i)::ext.ltree"),
    "mood": ("k ext.mood, j int", "PRIMARY KEY (k, j)", "(ARRAY['sad', 'ok', 'happy'])[i % 3 + 1]::ext.mood, i"),
    "ranged": ("k int4range", "PRIMARY KEY (k)", "int4range(i, i + i % 5 + 1)"),
    "blank_padded": ("k char(9)", "PRIMARY KEY (k)", "'x' || lpad(i::text, 8, '0')"),
    "unique_as_text": ("k ext.citext NOT NULL", "UNIQUE (k text_ops)", f"({_TWICE})::ext.citext"),
    "unique_in_bytes": ("k ext.citext NOT NULL", "UNIQUE (k text_pattern_ops)", f"({_TWICE})::ext.citext"),
    "backwards": ("k int NOT NULL", "UNIQUE (k ext.backwards)", "i"),
}
"""Table → its columns, its key, and that of row i."""

SCHEMA = """
CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext; CREATE EXTENSION ltree SCHEMA ext;
CREATE DOMAIN ext.word AS ext.citext CHECK (VALUE <> ''); CREATE TYPE ext.pair AS (a int, b text);
CREATE TYPE ext.mood AS ENUM ('sad', 'ok', 'happy');
CREATE FUNCTION ext.turned(int, int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT pg_catalog.btint4cmp($2, $1)';
CREATE OPERATOR CLASS ext.backwards FOR TYPE int USING btree AS
  OPERATOR 1 >, OPERATOR 2 >=, OPERATOR 3 =, OPERATOR 4 <=, OPERATOR 5 <, FUNCTION 1 ext.turned(int, int);
"""


def test_no_row_is_missing_for_any_key_order(new_source: NewSource) -> None:
    ddl = [SCHEMA]
    for name, (columns, key, value) in KINDS.items():
        unique = key.startswith("UNIQUE")
        index = f"CREATE UNIQUE INDEX ON {name} {key.removeprefix('UNIQUE')};" if unique else ""
        ddl += [
            f"CREATE TABLE {name} ({columns}, n int NOT NULL{'' if unique else ', ' + key}); {index}",
            f"INSERT INTO {name} SELECT {value}, 0 FROM generate_series(1, 24) i;",
            f"ALTER TABLE {name} REPLICA IDENTITY FULL;" if unique else "",
        ]
    tables = [f"public.{name}" for name in KINDS]
    keys = {f"public.{name}": ["k"] for name, (_, key, _) in KINDS.items() if key.startswith("UNIQUE")}
    source = new_source("".join(ddl), *tables, snapshot={"chunk_rows": 7}, keys=keys)
    with running(source) as producer:
        for n in range(1, 4):
            for name in KINDS:
                source.connection.execute(f"UPDATE {name} SET n = {n} WHERE n = {n - 1} AND random() < 0.7".encode())
        producer.caught_up()
    for table in tables:
        assert len({record.raw_key for record in source.require_equal(table)}) == 24, table

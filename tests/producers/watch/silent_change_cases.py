"""Cases of tables whose rows change without events, or only seem to."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from consumers.testing.waiting import until
from tests.producers.folding import Record, fold, text
from tests.producers.sources import Running, Source

TYPES = """
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE TYPE other_mood AS ENUM ('sad', 'happy');
CREATE TYPE new_mood AS ENUM ('sad', 'happy');
CREATE TYPE kept_mood AS ENUM ('sad', 'happy');
CREATE DOMAIN feeling AS mood;
CREATE TYPE pair AS (a int, b mood);
CREATE TYPE wide AS (a int, b text, c text);
CREATE TYPE named AS (a int, b text);
CREATE DOMAIN short AS text;
CREATE TYPE mood_range AS RANGE (subtype = other_mood);
"""


@dataclass(frozen=True)
class Case:
    """A table `{t}` with a column `v`, its first rows, and statements that change values without events.

    `again` is run while the producer is stopped, `change` while it runs; `v` is a column of the table before and after.
    """

    columns: str
    rows: tuple[str, ...]
    change: str
    again: str
    parts: str = ""


PARTS = (
    "PARTITION BY RANGE (id); CREATE TABLE {t}_1 PARTITION OF {t} FOR VALUES FROM (0) TO (50);"
    "CREATE TABLE {t}_2 PARTITION OF {t} FOR VALUES FROM (50) TO (99)"
)

CHANGED = {
    # Changes of a column's attnum.
    "dropped_and_added": Case(
        "v text", ("'old'",), "ALTER TABLE {t} DROP v; ALTER TABLE {t} ADD v text", "ALTER TABLE {t} DROP v, ADD v text"
    ),
    "dropped_and_added_in_one": Case(
        "v int",
        ("1", "2"),
        "ALTER TABLE {t} DROP v, ADD v int",
        "UPDATE {t} SET v = 3; ALTER TABLE {t} DROP v, ADD v int DEFAULT 9",
    ),
    "dropped_and_added_with_default": Case(
        "v int",
        ("1",),
        "ALTER TABLE {t} DROP v; ALTER TABLE {t} ADD v int DEFAULT 7",
        "ALTER TABLE {t} DROP v, ADD v int NOT NULL DEFAULT 8",
    ),
    "dropped_and_added_with_an_event_between": Case(
        "v text",
        ("'old'", "'older'"),
        "ALTER TABLE {t} DROP v; INSERT INTO {t} (id) VALUES (50); ALTER TABLE {t} ADD v text",
        "UPDATE {t} SET v = 'x' WHERE id = 1; ALTER TABLE {t} DROP v; INSERT INTO {t} (id) VALUES (51);"
        "ALTER TABLE {t} ADD v text DEFAULT 'd'",
    ),
    "names_swapped": Case(
        "v int, w int DEFAULT 5",
        ("1",),
        "ALTER TABLE {t} RENAME v TO x; ALTER TABLE {t} RENAME w TO v; ALTER TABLE {t} RENAME x TO w",
        "ALTER TABLE {t} RENAME v TO x; ALTER TABLE {t} RENAME w TO v; ALTER TABLE {t} RENAME x TO w",
    ),
    # The same type, with other values.
    "using_with_the_same_type": Case(
        "v text",
        ("'abc'",),
        "ALTER TABLE {t} ALTER v TYPE text USING upper(v)",
        "ALTER TABLE {t} ALTER v TYPE text USING v || '!'",
    ),
    "partitioned": Case(
        "v text",
        ("'abc'",),
        "ALTER TABLE {t} ALTER v TYPE text USING upper(v)",
        "ALTER TABLE {t} DROP v; ALTER TABLE {t} ADD v text DEFAULT 'd'",
        PARTS,
    ),
    "using_with_a_wider_type": Case(
        "v int",
        ("1",),
        "ALTER TABLE {t} ALTER v TYPE bigint USING v * 1000",
        "ALTER TABLE {t} ALTER v TYPE bigint USING v + 1",
    ),
    "added_then_altered": Case(
        "v int",
        ("1",),
        "ALTER TABLE {t} ADD w text; UPDATE {t} SET w = 'a'; ALTER TABLE {t} ALTER w TYPE text USING upper(w)",
        "ALTER TABLE {t} ADD x int; UPDATE {t} SET x = 1; ALTER TABLE {t} ALTER x TYPE int USING x + 1",
    ),
    "no_longer_generated": Case(
        "v int, w int GENERATED ALWAYS AS (v * 2) STORED",
        ("1",),
        "ALTER TABLE {t} ALTER w DROP EXPRESSION",
        "ALTER TABLE {t} ADD x int GENERATED ALWAYS AS (id) STORED; ALTER TABLE {t} ALTER x DROP EXPRESSION",
    ),
    # Modifiers.
    "numeric_to_hundreds": Case(
        "v numeric",
        ("12345", "99"),
        "ALTER TABLE {t} ALTER v TYPE numeric(3,-2)",
        "ALTER TABLE {t} ALTER v TYPE numeric(3,-3)",
    ),
    "numeric_of_decimals_alone": Case(
        "v numeric(2,4)",
        ("0.0012",),
        "ALTER TABLE {t} ALTER v TYPE numeric(2,3)",
        "ALTER TABLE {t} ALTER v TYPE numeric; ALTER TABLE {t} ALTER v TYPE numeric(2,4)",
    ),
    "interval_decimals": Case(
        "v interval second(3)",
        ("'1.234 s'",),
        "ALTER TABLE {t} ALTER v TYPE interval second(2)",
        "ALTER TABLE {t} ALTER v TYPE interval second(0)",
    ),
    "interval_fields": Case(
        "v interval",
        ("'1 year 2 mons 3 days 04:05:06'",),
        "ALTER TABLE {t} ALTER v TYPE interval day to minute",
        "ALTER TABLE {t} ALTER v TYPE interval year",
    ),
    "timestamp_decimals_and_back": Case(
        "v timestamp(6)",
        ("'2024-01-01 00:00:00.123456'",),
        "ALTER TABLE {t} ALTER v TYPE timestamp(3); ALTER TABLE {t} ALTER v TYPE timestamp(6)",
        "ALTER TABLE {t} ALTER v TYPE timestamp(0); ALTER TABLE {t} ALTER v TYPE timestamp(6)",
    ),
    "varchar_over_blanks": Case(
        "v varchar(10)",
        ("'ab    '", "'cd'"),
        "ALTER TABLE {t} ALTER v TYPE varchar(4)",
        "ALTER TABLE {t} ALTER v TYPE varchar(2)",
    ),
    "char_lengths": Case(
        "v char(10)", ("'ab'",), "ALTER TABLE {t} ALTER v TYPE char(4)", "ALTER TABLE {t} ALTER v TYPE char(12)"
    ),
    "bits": Case(
        "v varbit(8), w bit(8) DEFAULT B'10101010'",
        ("'10110'",),
        "ALTER TABLE {t} ALTER v TYPE varbit(3) USING v::varbit(3)",
        "ALTER TABLE {t} ALTER w TYPE bit(4) USING w::bit(4)",
    ),
    "a_domain": Case(
        "v short",
        ("'abc'",),
        "ALTER TABLE {t} ALTER v TYPE short USING v || 'x'",
        "ALTER TABLE {t} ALTER v TYPE short USING upper(v)",
    ),
    # Types whose text changes by itself. The statements are of types that several cases share: see SHARED.
    "enum": Case("v mood", ("'sad'",), "", ""),
    "enum_array": Case("v mood[]", ("'{{sad,happy}}'",), "", ""),
    "enum_domain": Case("v feeling", ("'sad'",), "", ""),
    "enum_domain_array": Case("v feeling[]", ("'{{sad,NULL}}'",), "", ""),
    "enum_in_a_composite": Case("v pair", ("'(1,sad)'",), "", ""),
    "enum_range": Case("v mood_range", ("'[sad,happy)'",), "", ""),
    "composite": Case("v wide", ("'(1,x,y)'",), "", ""),
    "composite_array": Case("v wide[]", ("ARRAY['(1,x,y)'::wide]",), "", ""),
}

SHARED = (
    "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'",
    "ALTER TYPE other_mood RENAME VALUE 'sad' TO 'blue'; ALTER TYPE wide ADD ATTRIBUTE d int",
)
SHARED_AGAIN = (
    # Reverted between two checks, with an event that has the name in between.
    "ALTER TYPE mood RENAME VALUE 'happy' TO 'merry'; UPDATE enum_array SET v = '{merry}'; INSERT INTO enum VALUES"
    " (70, 'merry'); ALTER TYPE mood RENAME VALUE 'merry' TO 'happy'",
    "ALTER TYPE other_mood RENAME VALUE 'happy' TO 'merry'; ALTER TYPE wide DROP ATTRIBUTE c, ADD ATTRIBUTE c text",
)

KEPT = {
    "storage_rewritten": Case("v text", ("'a'",), "VACUUM FULL {t}", "CLUSTER {t} USING {t}_pkey"),
    "one_partition_rewritten": Case(
        "v text",
        ("'a'",),
        "VACUUM FULL {t}_1; ALTER TABLE {t} ALTER v SET STATISTICS 10",
        "VACUUM FULL {t}_1; ALTER TABLE {t} ADD w int",
        PARTS,
    ),
    "altered_alone": Case(
        "v text",
        ("'a'",),
        "ALTER TABLE {t} ALTER v SET STATISTICS 10, ALTER v SET DEFAULT 'x', ALTER v SET STORAGE EXTERNAL",
        "ALTER TABLE {t} ALTER v SET NOT NULL; GRANT SELECT (v) ON {t} TO PUBLIC; ANALYZE {t}",
    ),
    "longer": Case(
        "v varchar(10)", ("'a'",), "ALTER TABLE {t} ALTER v TYPE varchar(20)", "ALTER TABLE {t} ALTER v TYPE text"
    ),
    "labels_added": Case(
        "v kept_mood",
        ("'sad'",),
        "ALTER TYPE kept_mood ADD VALUE 'new'",
        "ALTER TYPE kept_mood ADD VALUE 'newer' BEFORE 'new'; ALTER TYPE kept_mood RENAME TO still_mood",
    ),
    "attribute_renamed": Case(
        "v named", ("'(1,x)'",), "ALTER TYPE named RENAME ATTRIBUTE a TO z", "ALTER TYPE named RENAME TO called"
    ),
    "domain_altered": Case(
        "v short",
        ("'a'",),
        "ALTER DOMAIN short ADD CONSTRAINT c CHECK (length(VALUE) < 100)",
        "ALTER DOMAIN short SET DEFAULT 'd'; ALTER DOMAIN short RENAME TO shorter",
    ),
    "another_collation": Case(
        "v text",
        ("'a'",),
        'ALTER TABLE {t} ALTER v TYPE text COLLATE "C"',
        'ALTER TABLE {t} ALTER v TYPE text COLLATE "POSIX"',
    ),
    "column_added": Case("v text", ("'a'",), "ALTER TABLE {t} ADD w int", "ALTER TABLE {t} ADD x new_mood"),
    "generated": Case(
        "v int, w int GENERATED ALWAYS AS (v) STORED",
        ("1",),
        "ALTER TABLE {t} DROP w, ADD w int GENERATED ALWAYS AS (v + 1) STORED",
        "ALTER TABLE {t} ALTER w SET EXPRESSION AS (v + 2)",
    ),
}


def ddl(cases: dict[str, Case]) -> str:
    made = [
        f"CREATE TABLE {name} (id int PRIMARY KEY, {case.columns}) {case.parts.format(t=name)};"
        + "".join(
            f"INSERT INTO {name} (id, v) VALUES ({place}, {value});"
            for place, value in enumerate((each.format() for each in case.rows), 1)
        )
        for name, case in cases.items()
    ]
    return "".join(made)


def run(source: Source, statements: str, name: str = "") -> None:
    # One statement a transaction, as an application's migrations have it.
    for statement in statements.format(t=name).split(";") if name else statements.split(";"):
        if statement.strip():
            source.connection.execute(statement.encode())


def shown(records: list[Record], columns: tuple[str, ...]) -> list[tuple[str | None, ...]]:
    """Return the rows of a topic; a column that a record lacks is null."""
    rows = fold(records).values()
    return sorted(
        (tuple(text(row.get(column)) for column in columns) for row in rows), key=lambda row: int(row[0] or 0)
    )


def expected(source: Source, name: str) -> tuple[tuple[str, ...], list[tuple[str | None, ...]]]:
    columns = tuple(
        column
        for (column,) in source.connection.execute(
            "SELECT attname::text FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
            " AND attgenerated = '' ORDER BY attname <> 'id', attnum",
            (name,),
        ).fetchall()
    )
    # Not by a cast to text, which strips the blanks of a char(n).
    texts = sql.SQL(", ").join(
        sql.SQL("nullif(format('%s', {0}), '')").format(sql.Identifier(each)) for each in columns
    )
    query = sql.SQL("SELECT {} FROM {} ORDER BY id").format(texts, sql.Identifier(name))
    return columns, source.connection.execute(query).fetchall()


def becomes_equal(source: Source, producer: Running, name: str) -> None:
    columns, rows = expected(source, name)

    def equal() -> bool:
        producer.check()
        state = source.state().snapshots[f"public.{name}"]
        assert state.stopped is None, f"{name}: {state.stopped}"
        return not state.under_way and shown(source.records(f"public.{name}"), columns) == rows

    until(equal, f"{name} to be {rows}; it is {shown(source.records(f'public.{name}'), columns)}")

"""Changes of a whole source, or of its right to read: publication, slot, grants, requests, foreign bytes."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Final

from tests.fuzz import reasons
from tests.fuzz.acts import BEGIN, PASS, RESTART, Act, Ending
from tests.fuzz.changes import Change, Setting, acts, between
from tests.fuzz.shapes import Table, names_of, not_valid, validated
from tests.fuzz.values import quoted
from tests.fuzz.writes import picked

PUBLICATION: Final = "ALTER PUBLICATION headrace"


def edit_publication_of_table(random: Random, table: Table, setting: Setting) -> list[Act]:
    drop, add = f"{PUBLICATION} DROP TABLE {table.sql}", f"{PUBLICATION} ADD TABLE {table.sql}"
    steps = [drop, add]
    if setting.version >= 15 and random.random() < 0.6:
        key = ", ".join(column.sql for column in table.keys)
        part = random.choice((" WHERE (false)", f" ({key})"))
        steps = [drop, f"{add}{part}", drop, add]
    justified = (reasons.TAKEN_OUT, reasons.EDITED, reasons.taken_out_since(table.qualified))
    # With a column list that lacks part of its identity, PostgreSQL refuses to update it.
    what, unwritable = "edit the publication of a table", len(steps) > 2
    return acts(random, what, table, setting, steps, *justified, unwritable=unwritable)


def edit_publication(random: Random, table: Table, setting: Setting) -> list[Act]:
    """Even an edit that is undone at once leaves it altered."""
    ways = (
        ("publish = 'insert'", "publish = 'insert, update, delete, truncate'"),
        ("publish_via_partition_root = true", "publish_via_partition_root = false"),
    )
    steps = [f"{PUBLICATION} SET ({way})" for way in random.choice(ways)]
    justified = (reasons.publication("was altered"), reasons.TAKEN_OUT, reasons.AS_ONE)
    return _of_all(acts(random, "edit the publication", table, setting, steps, *justified))


def make_publication_again(random: Random, table: Table, setting: Setting) -> list[Act]:
    listed = "format('%s %I.%I', CASE WHEN c.relkind = 'p' THEN '' ELSE 'ONLY' END, n.nspname, c.relname)"
    published = (
        f"SELECT string_agg({listed}, ', ') FROM pg_publication_rel r JOIN pg_class c ON c.oid = r.prrelid"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
    )
    generated = " || ' WITH (publish_generated_columns = stored)'" if setting.version >= 18 else ""
    create = f"EXECUTE 'CREATE PUBLICATION headrace FOR TABLE ' || (SELECT * FROM ext.published){generated}"
    steps = [
        f"CREATE TABLE ext.published AS {published}",
        "DROP PUBLICATION headrace",
        f"DO $$ BEGIN {create}; END $$",
        "DROP TABLE ext.published",
    ]
    gone = ("was dropped and recreated", "was dropped", "no longer exists", "was altered")
    justified = [*map(reasons.publication, gone), reasons.TAKEN_OUT]
    return _of_all(acts(random, "make the publication again", table, setting, steps, *justified))


def drop_publication(random: Random, table: Table, setting: Setting) -> list[Act]:
    gone = ("was dropped", "no longer exists", "was dropped and recreated")
    justified = (*map(reasons.publication, gone), reasons.TAKEN_OUT)
    return _of_all(acts(random, "drop the publication", table, setting, ["DROP PUBLICATION headrace"], *justified))


TWO_PHASE: Final = Act("make the slot two_phase", justifies=(reasons.TWO_PHASE,))


def make_slot_two_phase(random: Random, table: Table, setting: Setting) -> list[Act]:
    return [TWO_PHASE]


def hide_rows(random: Random, table: Table, setting: Setting) -> list[Act]:
    """Take the right to read from the producer's role for a while; a superuser keeps it."""
    if not setting.owned:
        return []
    hide, show = random.choice(
        (
            (f"REVOKE SELECT ON {table.sql} FROM CURRENT_USER", f"GRANT SELECT ON {table.sql} TO CURRENT_USER"),
            (
                f"REVOKE USAGE ON SCHEMA {table.schema_sql} FROM PUBLIC, CURRENT_USER",
                f"GRANT USAGE ON SCHEMA {table.schema_sql} TO PUBLIC, CURRENT_USER",
            ),
            (
                f"ALTER TABLE {table.sql} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
                f"ALTER TABLE {table.sql} NO FORCE ROW LEVEL SECURITY",
            ),
        )
    )
    justified = reasons.hidden(None if "USAGE" in hide else table.qualified)
    name = None if "USAGE" in hide else table.qualified
    made = [Act("hide rows", (hide,), Ending.COMMIT, name, justified, repairs=(show,))]
    made += between(random, table, setting, PASS)
    if random.random() < 0.7:
        made += [RESTART, BEGIN, *between(random, table, setting, PASS)]
    return [*made, Act("show rows", (show,), Ending.COMMIT, name)]


def request_nonsense(random: Random, table: Table, setting: Setting) -> list[Act]:
    """Request impossible re-snapshots: they are refused, and end nothing."""
    name = quoted(table.qualified)
    no_key = f"ARRAY{['no key'] * len(table.keys)}"
    values = random.choice(
        (
            "'no.such', NULL, NULL, false",
            "'', NULL, NULL, true",
            f"{name}, ARRAY['1', '2', '3', '4'], NULL, false",
            f"{name}, ARRAY[NULL], NULL, false",
            f"{name}, ARRAY[]::text[], ARRAY[['a', 'b']], false",
            f"{name}, NULL, ARRAY[repeat('x', 300000)], false",
            f"{name}, {no_key}, {no_key}, false",
        )
    )
    step = f'INSERT INTO headrace.snapshot_requests ("table", first_key, last_key, from_scratch) VALUES ({values})'
    return [Act("request nonsense", (step,))]


_WITHOUT_TEXT: Final = {"WIN1252": "81", "SQL_ASCII": "e9", "EUC_JP": "a9a1"}
"""Encoding → bytes, in hexadecimal, that are no character in it, or none that UTF-8 has."""


def write_bytes_without_text(random: Random, table: Table, setting: Setting) -> list[Act]:
    found = [column for column in table.others if column.type in ("text", "varchar", "varchar(9)")]
    if not found or setting.encoding not in _WITHOUT_TEXT:
        return []
    column, written = random.choice(found), _WITHOUT_TEXT[setting.encoding]
    value = f"convert_from('\\x{written}'::bytea, '{setting.encoding}')"
    step = f"UPDATE {table.sql} SET {column.sql} = {value} WHERE {picked(random, table, 1)}"
    # In every column of text: this one may have been swapped with another meanwhile.
    repair = f"""
        DO $repair$ DECLARE name text; BEGIN
            FOR name IN SELECT quote_ident(attname) FROM pg_attribute
                 WHERE attrelid = {quoted(table.sql)}::regclass AND attnum > 0 AND NOT attisdropped
                   AND attgenerated = '' AND atttypid IN ('text'::regtype, 'varchar'::regtype)
            LOOP
                EXECUTE format($$UPDATE {table.sql.replace("%", "%%")} SET %1$s = 'x'
                    WHERE convert_to(%1$s::text, '{setting.encoding}') = '\\x{written}'::bytea$$, name);
            END LOOP;
        END $repair$"""
    justified = reasons.without_text(table.qualified, column.name, written, setting.encoding)
    return [Act("write bytes without text", (step,), Ending.COMMIT, table.qualified, justified, (repair,))]


def write_null_key(random: Random, table: Table, setting: Setting) -> list[Act]:
    if setting.version < 18 or not table.unique_only or table.null_key:
        return []
    table.null_key = True
    steps = [
        f"ALTER TABLE {table.sql} REPLICA IDENTITY FULL",
        *(f"ALTER TABLE {table.sql} ALTER {column.sql} DROP NOT NULL" for column in table.keys),
        f"INSERT INTO {table.sql} DEFAULT VALUES",
        *(f"ALTER TABLE {table.sql} ADD {each}" for each in not_valid(table)),
        f"ALTER TABLE {table.sql} REPLICA IDENTITY {table.safe_identity}",
    ]
    names = names_of(table.keys)
    justified = [*reasons.no_key(table.qualified), *reasons.not_validated(table.qualified, names)]
    justified += reasons.virtual_in_identity(table.qualified, [column.name for column in table.virtual])
    what, repairs = "write a key that is null", tuple(validated(table))
    return [Act(what, tuple(steps), Ending.COMMIT, table.qualified, tuple(justified), repairs, unwritable=True)]


SOURCE_CHANGES: Final[tuple[Change, ...]] = (
    edit_publication_of_table,
    edit_publication_of_table,
    edit_publication,
    make_publication_again,
    drop_publication,
    make_slot_two_phase,
    hide_rows,
    hide_rows,
    hide_rows,
    request_nonsense,
    write_bytes_without_text,
    write_bytes_without_text,
    write_null_key,
    write_null_key,
)


def _of_all(made: list[Act]) -> list[Act]:
    """Return the acts as those that may stop every table, or the source."""
    return [replace(act, table=None) if act.justifies else act for act in made]

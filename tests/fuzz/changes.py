"""Changes of tables while they are captured, each with the reasons for which a table may be stopped after it.

A change that `followed` names in docs/events.md justifies nothing: the topic has to say what the table says. Many are
undone at once, with writes in between, so that the table looks as it did.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from tests.fuzz.acts import CATCH_UP, Act, Ending
from tests.fuzz.shapes import Column, Table
from tests.fuzz.values import MOOD, RETYPED, SMALL, WIDENED, quoted
from tests.fuzz.writes import transaction


@dataclass(frozen=True)
class Setting:
    """What a change may have to know beside its table."""

    version: int
    codec: str
    tables: list[Table]


Change = Callable[[Random, Table, Setting], list[Act]]
"""Changes the table, and what is believed of it; returns nothing where it cannot be."""

PUBLICATION: Final = "ALTER PUBLICATION headrace"


def acts(
    random: Random, what: str, table: Table, setting: Setting, steps: list[str], *justifies: str, whole: bool = False
) -> list[Act]:
    """Return the steps in one transaction or in several, with writes between them.

    `whole`: they may stop every table, not this one alone.
    """
    name = None if whole else table.qualified
    if random.random() < 0.4:
        return [Act(what, tuple(steps), Ending.COMMIT, name, justifies)]
    made: list[Act] = []
    for step in steps:
        if made:
            made += _between(random, table, setting)
        made.append(Act(what, (step,), Ending.COMMIT, name, justifies))
    return made


def _between(random: Random, table: Table, setting: Setting) -> list[Act]:
    made = [transaction(random, [table], setting.codec) for _ in range(random.randrange(3))]
    if random.random() < 0.4:
        made.insert(random.randrange(len(made) + 1), CATCH_UP)
    return made


def add_column(random: Random, table: Table, setting: Setting) -> list[Act]:
    column = Column(table.new_name("added "), *random.choice(((SMALL, "int4"), (MOOD, MOOD.name))))
    table.columns.append(column)
    step = f"ALTER TABLE {table.sql} ADD COLUMN {column.sql} {column.type}"
    return acts(random, "add a column", table, setting, [step])


def add_filled_column(random: Random, table: Table, setting: Setting) -> list[Act]:
    column = Column(table.new_name("filled "), SMALL, "int4")
    table.columns.append(column)
    step = f"ALTER TABLE {table.sql} ADD COLUMN {column.sql} int4 {random.choice(('', 'NOT NULL'))} DEFAULT 7"
    return [*acts(random, "add a column with a default", table, setting, [step]), read_again(table)]


def drop_column(random: Random, table: Table, setting: Setting) -> list[Act]:
    if (column := _any(random, table.others)) is None:
        return []
    table.columns.remove(column)
    return acts(random, "drop a column", table, setting, [f"ALTER TABLE {table.sql} DROP COLUMN {column.sql}"])


def drop_and_add_column(random: Random, table: Table, setting: Setting) -> list[Act]:
    if (column := _any(random, table.others)) is None:
        return []
    column.kind, column.type = SMALL, "int4"
    filled = random.choice(("", " DEFAULT 7"))
    steps = [f"DROP COLUMN {column.sql}", f"ADD COLUMN {column.sql} int4{filled}"]
    whole = [f"ALTER TABLE {table.sql} {step}" for step in steps]
    if random.random() < 0.3:
        whole = [f"ALTER TABLE {table.sql} {', '.join(steps)}"]
    made = acts(random, "drop and add a column", table, setting, whole, _says(column.name))
    return [*made, read_again(table)] if filled else made


def rename_column(random: Random, table: Table, setting: Setting) -> list[Act]:
    column = random.choice(table.written)
    old, new = column.sql, f'"{table.new_name("renamed ")}"'
    steps = [f"ALTER TABLE {table.sql} RENAME COLUMN {old} TO {new}"]
    if random.random() < 0.5:
        steps.append(f"ALTER TABLE {table.sql} RENAME COLUMN {new} TO {old}")
    else:
        column.name = new[1:-1]
    return acts(random, "rename a column", table, setting, steps, _says(column.name), "is called|renamed|key")


def swap_columns(random: Random, table: Table, setting: Setting) -> list[Act]:
    if len(table.others) < 2:
        return []
    first, second = random.sample(table.others, 2)
    pairs = [(first.sql, '"swapped"'), (second.sql, first.sql), ('"swapped"', second.sql)]
    steps = tuple(f"ALTER TABLE {table.sql} RENAME COLUMN {old} TO {new}" for old, new in pairs)
    first.name, second.name = second.name, first.name
    justified = (_says(first.name), _says(second.name))
    return [Act("swap columns", steps, Ending.COMMIT, table.qualified, justified)]


def retype_column(random: Random, table: Table, setting: Setting) -> list[Act]:
    found = [(column, new) for column in table.others for kind, new in RETYPED if column.kind is kind]
    if not found:
        return []
    column, new = random.choice(found)
    step = f"ALTER TABLE {table.sql} ALTER COLUMN {column.sql} TYPE {new}"
    return acts(random, f"{column.type} becomes {new}", table, setting, [step], _says(column.name))


def widen_column(random: Random, table: Table, setting: Setting) -> list[Act]:
    found = [(column, new) for column in table.others for kind, new in WIDENED if column.kind is kind]
    if not found:
        return []
    column, new = random.choice(found)
    # The texts of a real are others as double precision, and are stopped for; docs/events.md has both as followed.
    justified = (_says(column.name),) if new == "float8" else ()
    step = f"ALTER TABLE {table.sql} ALTER COLUMN {column.sql} TYPE {new}"
    return acts(random, f"{column.type} becomes {new}", table, setting, [step], *justified)


def retype_key(random: Random, table: Table, setting: Setting) -> list[Act]:
    column = random.choice(table.keys)
    step = f"ALTER TABLE {table.sql} ALTER COLUMN {column.sql} TYPE text"
    return acts(random, "retype the key", table, setting, [step], _says(column.name), "key")


def rename_label(random: Random, table: Table, setting: Setting) -> list[Act]:
    old = random.choice(("sad", "o,k", "glad"))
    steps = [f"ALTER TYPE ext.mood RENAME VALUE {quoted(old)} TO {quoted(old + ' again')}"]
    return acts(random, "rename a label", table, setting, steps, "mood|enum|label|type|column", whole=True)


def add_label(random: Random, table: Table, setting: Setting) -> list[Act]:
    step = f"ALTER TYPE ext.mood ADD VALUE {quoted(table.new_name('label '))} BEFORE 'o,k'"
    return [Act("add a label", (step,), Ending.ALONE)]


def change_composite(random: Random, table: Table, setting: Setting) -> list[Act]:
    step = random.choice(("ADD ATTRIBUTE c int", "DROP ATTRIBUTE b"))
    return acts(
        random, "change a composite", table, setting, [f"ALTER TYPE ext.pair {step}"], "pair|composite|type", whole=True
    )


def change_identity(random: Random, table: Table, setting: Setting) -> list[Act]:
    steps = [f"ALTER TABLE {table.sql} REPLICA IDENTITY {random.choice(('FULL', 'DEFAULT'))}" for _ in range(2)]
    justified = ("identity",) if table.unique_only or table.partitioned else ()
    return acts(random, "change the identity", table, setting, steps[: random.randrange(1, 3)], *justified)


def lose_identity(random: Random, table: Table, setting: Setting) -> list[Act]:
    steps = [f"ALTER TABLE {table.sql} REPLICA IDENTITY {identity}" for identity in ("NOTHING", table.identity)]
    if table.unique_only:
        return []
    return acts(random, "lose the identity", table, setting, steps[: random.randrange(1, 3)], "identity")


def drop_key(random: Random, table: Table, setting: Setting) -> list[Act]:
    if table.unique_only:
        return []
    key = ", ".join(column.sql for column in table.keys)
    drop = f"ALTER TABLE {table.sql} DROP CONSTRAINT {table.key_name}"
    add = f"ALTER TABLE {table.sql} ADD CONSTRAINT {table.key_name} PRIMARY KEY ({key})"
    steps = [drop, add][: random.choice((1, 2, 2))]
    return acts(random, "drop the key", table, setting, steps, "key|unique|identity")


def drop_key_column(random: Random, table: Table, setting: Setting) -> list[Act]:
    column = random.choice(table.keys)
    step = f"ALTER TABLE {table.sql} DROP COLUMN {column.sql}"
    return acts(random, "drop a column of the key", table, setting, [step], "key|column|unique|identity")


def rename_table(random: Random, table: Table, setting: Setting) -> list[Act]:
    away = f"ALTER TABLE {table.sql} RENAME TO away"
    back = f'ALTER TABLE "{table.schema.replace(chr(34), chr(34) * 2)}".away RENAME TO {table.sql.rpartition(".")[2]}'
    steps = [away, back] if random.random() < 0.7 else [away]
    return acts(random, "rename the table", table, setting, steps, "renamed|dropped|does not exist|name")


def move_table(random: Random, table: Table, setting: Setting) -> list[Act]:
    bare = table.sql.rpartition(".")[2]
    home = table.sql.removesuffix(f".{bare}")
    steps = [f"ALTER TABLE {table.sql} SET SCHEMA ext", f"ALTER TABLE ext.{bare} SET SCHEMA {home}"]
    return acts(random, "move the table", table, setting, steps, "renamed|dropped|does not exist|name")


def replace_table(random: Random, table: Table, setting: Setting) -> list[Act]:
    if table.partitioned:
        return []
    steps = [
        f"CREATE TABLE ext.other (LIKE {table.sql} INCLUDING ALL)",
        f"DROP TABLE {table.sql}",
        f"ALTER TABLE ext.other SET SCHEMA {table.sql.removesuffix('.' + table.sql.rpartition('.')[2])}",
        f"ALTER TABLE {table.sql.rpartition('.')[0]}.other RENAME TO {table.sql.rpartition('.')[2]}",
    ]
    return [
        Act(
            "replace the table", tuple(steps), Ending.COMMIT, table.qualified, ("dropped|another|identity|publication",)
        )
    ]


def edit_publication(random: Random, table: Table, setting: Setting) -> list[Act]:
    ways = [
        [f"{PUBLICATION} DROP TABLE {table.sql}", f"{PUBLICATION} ADD TABLE {table.sql}"],
        [
            f"{PUBLICATION} SET (publish = 'insert')",
            f"{PUBLICATION} SET (publish = 'insert, update, delete, truncate')",
        ],
        [
            f"{PUBLICATION} SET (publish_via_partition_root = true)",
            f"{PUBLICATION} SET (publish_via_partition_root = false)",
        ],
    ]
    if setting.version >= 15:
        key = ", ".join(column.sql for column in table.keys)
        part = random.choice((" WHERE (false)", f" ({key})"))
        drop = f"{PUBLICATION} DROP TABLE {table.sql}"
        ways.append([drop, f"{PUBLICATION} ADD TABLE {table.sql}{part}", drop, f"{PUBLICATION} ADD TABLE {table.sql}"])
    place = random.randrange(len(ways))
    return acts(random, "edit the publication", table, setting, ways[place], "publication|publish", whole=place > 0)


def make_publication_again(random: Random, table: Table, setting: Setting) -> list[Act]:
    listed = "format('%s %I.%I', CASE WHEN c.relkind = 'p' THEN '' ELSE 'ONLY' END, n.nspname, c.relname)"
    published = (
        f"SELECT string_agg({listed}, ', ') FROM pg_publication_rel r JOIN pg_class c ON c.oid = r.prrelid"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
    )
    create = "EXECUTE 'CREATE PUBLICATION headrace FOR TABLE ' || (SELECT * FROM ext.published)"
    steps = [
        f"CREATE TABLE ext.published AS {published}",
        "DROP PUBLICATION headrace",
        f"DO $$ BEGIN {create}; END $$",
    ]
    return acts(random, "make the publication again", table, setting, steps, "publication", whole=True)


def add_generated_column(random: Random, table: Table, setting: Setting) -> list[Act]:
    kind = "STORED" if setting.version < 18 else random.choice(("STORED", "VIRTUAL"))
    column = Column(table.new_name("made "), SMALL, "int", generated=True)
    table.columns.append(column)
    step = f"ALTER TABLE {table.sql} ADD COLUMN {column.sql} int GENERATED ALWAYS AS (1 + 1) {kind}"
    return acts(random, "add a generated column", table, setting, [step], "generated")


def leave_it_as_it_is(random: Random, table: Table, setting: Setting) -> list[Act]:
    column = random.choice(table.written).sql
    alone = [f"VACUUM FULL {table.sql}", f"ANALYZE {table.sql}", f"REINDEX TABLE {table.sql}"]
    steps = [
        f"ALTER TABLE {table.sql} ALTER COLUMN {column} SET STATISTICS 7",
        f"ALTER TABLE {table.sql} ADD CHECK ({column} IS NOT NULL OR true)",
        f"COMMENT ON COLUMN {table.sql}.{column} IS 'a comment'",
        f"ALTER TABLE {table.sql} ALTER COLUMN {column} DROP DEFAULT",
        f"CREATE INDEX ON {table.sql} ((1))",
        f"ALTER TABLE {table.sql} ENABLE ROW LEVEL SECURITY",
    ]
    if random.random() < 0.4:
        return [Act("rewrite it", (random.choice(alone),), Ending.ALONE)]
    return acts(random, "change nothing", table, setting, random.sample(steps, 2))


def read_again(table: Table) -> Act:
    """Have a table re-snapshot, as an operator does."""
    return Act("read it again", table=table.qualified)


def reads_again(random: Random, table: Table, setting: Setting) -> list[Act]:
    return [read_again(table)]


CHANGES: Final[tuple[Change, ...]] = (
    add_column,
    add_filled_column,
    drop_column,
    drop_and_add_column,
    drop_and_add_column,
    rename_column,
    swap_columns,
    *(retype_column,) * 6,
    widen_column,
    retype_key,
    rename_label,
    add_label,
    change_composite,
    change_identity,
    lose_identity,
    drop_key,
    drop_key_column,
    rename_table,
    move_table,
    replace_table,
    *(edit_publication,) * 3,
    make_publication_again,
    add_generated_column,
    leave_it_as_it_is,
    reads_again,
    reads_again,
)


def _any(random: Random, columns: list[Column]) -> Column | None:
    return random.choice(columns) if columns else None


def _says(name: str) -> str:
    """Return a pattern of a reason that names a column."""
    return rf"column {''.join(f'[{each}]' if each.isalnum() else '.' for each in name)}"

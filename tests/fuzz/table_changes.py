"""Changes of a table's key, identity, name and schema while it is captured; see `changes`."""

from __future__ import annotations

from random import Random
from typing import Final

from tests.fuzz import reasons
from tests.fuzz.acts import Act, Ending
from tests.fuzz.changes import Change, Setting, acts
from tests.fuzz.shapes import Column, Table, names_of
from tests.fuzz.values import SMALL


def change_identity(random: Random, table: Table, setting: Setting) -> list[Act]:
    wanted = [random.choice(("FULL", "DEFAULT")) for _ in range(random.randrange(1, 3))]
    steps = [f"ALTER TABLE {table.sql} REPLICA IDENTITY {identity}" for identity in wanted]
    justified: list[str] = []
    # The identity of a partitioned table itself does not matter: it has no rows.
    if "DEFAULT" in wanted and table.unique_only:
        justified += reasons.no_identity(table.qualified, names_of(table.keys))
        justified += reasons.no_key(table.qualified)
    if "FULL" in wanted and not table.partitioned:
        if table.unique_only:
            justified += reasons.no_key(table.qualified)
        justified += reasons.virtual_in_identity(table.qualified, names_of(table.virtual))
    repairs = [] if table.partitioned else [f"ALTER TABLE {table.sql} REPLICA IDENTITY {table.safe_identity}"]
    return acts(
        random, "change the identity", table, setting, steps, *justified, repairs=repairs, unwritable=bool(justified)
    )


def lose_identity(random: Random, table: Table, setting: Setting) -> list[Act]:
    steps = [f"ALTER TABLE {table.sql} REPLICA IDENTITY {identity}" for identity in ("NOTHING", table.given_identity)]
    steps = steps[: random.randrange(1, 3)]
    justified: list[str] = []
    if not table.partitioned:
        justified += reasons.no_identity(table.qualified, names_of(table.keys))
        if table.unique_only:
            justified += reasons.no_key(table.qualified)
    repairs = [f"ALTER TABLE {table.sql} REPLICA IDENTITY {table.safe_identity}"]
    return acts(
        random,
        "lose the identity",
        table,
        setting,
        steps,
        *justified,
        repairs=repairs,
        unwritable=bool(justified),
        undone=True,
    )


def drop_key(random: Random, table: Table, setting: Setting) -> list[Act]:
    if table.unique_only:
        return []
    key = ", ".join(column.sql for column in table.keys)
    drop = f"ALTER TABLE {table.sql} DROP CONSTRAINT {table.key_name}"
    add = f"ALTER TABLE {table.sql} ADD CONSTRAINT {table.key_name} PRIMARY KEY ({key})"
    steps = [drop, add][: random.choice((1, 2, 2))]
    names = names_of(table.keys)
    justified = [*reasons.no_key(table.qualified), *reasons.no_identity(table.qualified, names)]
    justified += reasons.partition_without_identity(table.qualified, names) if table.partitioned else ()
    return acts(random, "drop the key", table, setting, steps, *justified, repairs=[add], unwritable=True, undone=True)


def drop_key_column(random: Random, table: Table, setting: Setting) -> list[Act]:
    column = random.choice(table.keys)
    step = f"ALTER TABLE {table.sql} DROP COLUMN {column.sql}"
    names = names_of(table.keys)
    justified = [*reasons.no_key(table.qualified), *reasons.no_identity(table.qualified, names)]
    justified += reasons.key_column_gone(table.qualified, column.name)
    justified += reasons.partition_without_identity(table.qualified, names) if table.partitioned else ()
    return acts(random, "drop a column of the key", table, setting, [step], *justified, unwritable=True)


def rename_table(random: Random, table: Table, setting: Setting) -> list[Act]:
    away = f"ALTER TABLE {table.sql} RENAME TO away"
    back = f"ALTER TABLE {table.schema_sql}.away RENAME TO {table.name_sql}"
    steps = [away, back] if random.random() < 0.7 else [away]
    justified = reasons.gone(table.qualified)
    return acts(random, "rename the table", table, setting, steps, *justified, repairs=[back], undone=True)


def move_table(random: Random, table: Table, setting: Setting) -> list[Act]:
    back = f"ALTER TABLE ext.{table.name_sql} SET SCHEMA {table.schema_sql}"
    steps = [f"ALTER TABLE {table.sql} SET SCHEMA ext", back]
    justified = reasons.gone(table.qualified)
    return acts(random, "move the table", table, setting, steps, *justified, repairs=[back], undone=True)


def replace_table(random: Random, table: Table, setting: Setting) -> list[Act]:
    if table.partitioned:
        return []
    steps = (
        f"CREATE TABLE ext.other (LIKE {table.sql} INCLUDING ALL)",
        f"DROP TABLE {table.sql}",
        f"ALTER TABLE ext.other SET SCHEMA {table.schema_sql}",
        f"ALTER TABLE {table.schema_sql}.other RENAME TO {table.name_sql}",
    )
    names = names_of(table.keys)
    # The new table is in no publication, and lacks the identity, which LIKE does not copy.
    justified = [*reasons.gone(table.qualified), reasons.TAKEN_OUT, reasons.taken_out_since(table.qualified)]
    if table.unique_only:
        justified += [*reasons.no_key(table.qualified), *reasons.no_identity(table.qualified, names)]
    return [
        Act(
            "replace the table",
            steps,
            Ending.COMMIT,
            table.qualified,
            tuple(justified),
            unwritable=table.unique_only,
        )
    ]


def add_generated_column(random: Random, table: Table, setting: Setting) -> list[Act]:
    kind = "STORED" if setting.version < 18 else random.choice(("STORED", "VIRTUAL"))
    column = Column(table.new_name("made "), SMALL, f"int {kind}", generated=True, virtual=kind == "VIRTUAL")
    table.columns.append(column)
    step = f"ALTER TABLE {table.sql} ADD COLUMN {column.sql} int GENERATED ALWAYS AS (1 + 1) {kind}"
    justified: tuple[str, ...] = ()
    repairs: list[str] = []
    if kind == "VIRTUAL":
        # With any identity: each later change of the identity would have to be modelled.
        justified = reasons.virtual_in_identity(table.qualified, [column.name])
        repairs = table.defaults
    return acts(
        random,
        "add a generated column",
        table,
        setting,
        [step],
        *justified,
        repairs=repairs,
        unwritable=bool(justified),
    )


def ungenerate_column(random: Random, table: Table, setting: Setting) -> list[Act]:
    found = [column for column in table.columns if column.generated and not column.virtual]
    if not found:
        return []
    column = random.choice(found)
    column.generated = False
    step = f"ALTER TABLE {table.sql} ALTER COLUMN {column.sql} DROP EXPRESSION"
    return acts(random, "drop an expression", table, setting, [step])


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


TABLE_CHANGES: Final[tuple[Change, ...]] = (
    change_identity,
    lose_identity,
    drop_key,
    drop_key_column,
    rename_table,
    move_table,
    replace_table,
    add_generated_column,
    ungenerate_column,
    leave_it_as_it_is,
)

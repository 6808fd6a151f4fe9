"""Changes of a table's columns while it is captured, each with the reasons for which it may stop the table.

A change that docs/reference/events.md documents as followed or as re-snapshotted justifies nothing: the topic has to
equal the table. Many are undone at once, with writes in between, so that the table looks the same as before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from tests.fuzz import reasons
from tests.fuzz.acts import CATCH_UP, Act, Ending
from tests.fuzz.shapes import Column, Table
from tests.fuzz.values import MOOD, RETYPED, SMALL, WIDENED, quoted
from tests.fuzz.writes import transaction


@dataclass(frozen=True)
class Setting:
    """What a change may need to know besides its table."""

    version: int
    encoding: str
    codec: str
    tables: list[Table]
    owned: bool
    """Whether the producer's role owns the tables, and is not a superuser."""


Change = Callable[[Random, Table, Setting], list[Act]]
"""Changes the table and the fuzz's model of it; returns nothing if the change is not possible."""


def acts(
    random: Random,
    what: str,
    table: Table,
    setting: Setting,
    steps: list[str],
    *justifies: str,
    repairs: Sequence[str] = (),
    unwritable: bool = False,
    undone: bool = False,
) -> list[Act]:
    """Return the steps in one transaction or in several, with writes between them.

    `undone`: the last step restores the state before the first; in one transaction that is no change, and justifies
    nothing.
    """
    if random.random() < 0.4:
        if undone and len(steps) > 1:
            justifies, unwritable = (), False
        return [Act(what, tuple(steps), Ending.COMMIT, table.qualified, justifies, tuple(repairs), unwritable)]
    made: list[Act] = []
    for step in steps:
        if made:
            made += between(random, table, setting)
        made.append(Act(what, (step,), Ending.COMMIT, table.qualified, justifies, tuple(repairs), unwritable))
    return made


def between(random: Random, table: Table, setting: Setting, wait: Act = CATCH_UP) -> list[Act]:
    """Return the acts between two steps: writes, with time for the producer to follow."""
    made = [transaction(random, [table], setting.codec) for _ in range(random.randrange(3))]
    if random.random() < 0.4:
        made.insert(random.randrange(len(made) + 1), wait)
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
    return [*acts(random, "add a column with a default", table, setting, [step]), resnapshot(table)]


def drop_column(random: Random, table: Table, setting: Setting) -> list[Act]:
    if (column := _any(random, table.others)) is None:
        return []
    table.columns.remove(column)
    step = f"ALTER TABLE {table.sql} DROP COLUMN {column.sql}"
    return acts(random, "drop a column", table, setting, [step], reasons.had_column(column.name))


def drop_and_add_column(random: Random, table: Table, setting: Setting) -> list[Act]:
    """May add it with the type that it had, but without the values."""
    if (column := _any(random, table.others)) is None:
        return []
    justified: tuple[str, ...] = ()
    filled = ""
    if random.random() < 0.5:
        justified = () if column.type in _UP_TO_INT4 else reasons.other_type(column.name)
        column.kind, column.type = SMALL, "int4"
        filled = random.choice(("", " DEFAULT 7"))
    steps = [f"DROP COLUMN {column.sql}", f"ADD COLUMN {column.sql} {column.type}{filled}"]
    whole = [f"ALTER TABLE {table.sql} {step}" for step in steps]
    if random.random() < 0.3:
        whole = [f"ALTER TABLE {table.sql} {', '.join(steps)}"]
    made = acts(random, "drop and add a column", table, setting, whole, *justified)
    return [*made, resnapshot(table)] if filled else made


def rename_column(random: Random, table: Table, setting: Setting) -> list[Act]:
    column = random.choice(table.written)
    old, new = column.sql, f'"{table.new_name("renamed ")}"'
    justified = [*reasons.renamed_column(column.name)]
    if column.key:
        justified += reasons.key_column_gone(table.qualified, column.name)
    steps = [f"ALTER TABLE {table.sql} RENAME COLUMN {old} TO {new}"]
    if undone := random.random() < 0.5:
        steps.append(f"ALTER TABLE {table.sql} RENAME COLUMN {new} TO {old}")
        # If the table was re-snapshotted in between, or the stream reached the change only after the renaming back.
        justified += reasons.renamed_column(new[1:-1])
        if column.key:
            justified += reasons.key_column_gone(table.qualified, new[1:-1])
    else:
        column.former = (*column.former, column.name)
        column.name = new[1:-1]
    return acts(random, "rename a column", table, setting, steps, *justified, undone=undone)


def swap_columns(random: Random, table: Table, setting: Setting) -> list[Act]:
    if len(table.others) < 2:
        return []
    first, second = random.sample(table.others, 2)
    pairs = [(first.sql, '"swapped"'), (second.sql, first.sql), ('"swapped"', second.sql)]
    steps = tuple(f"ALTER TABLE {table.sql} RENAME COLUMN {old} TO {new}" for old, new in pairs)
    first.name, second.name = second.name, first.name
    justified: tuple[str, ...] = ()
    if first.type != second.type:
        justified = (*reasons.other_type(first.name), *reasons.other_type(second.name))
    return [Act("swap columns", steps, Ending.COMMIT, table.qualified, justified)]


def retype_column(random: Random, table: Table, setting: Setting) -> list[Act]:
    found = [(column, new, again) for column in table.others for kind, new, again in RETYPED if column.kind is kind]
    if not found:
        return []
    column, new, again = random.choice(found)
    justified = (reasons.copied_since(column.name, new),) if again else reasons.other_type(column.name)
    step = f"ALTER TABLE {table.sql} ALTER COLUMN {column.sql} TYPE {new}"
    return acts(random, f"{column.type} becomes {new}", table, setting, [step], *justified)


def widen_column(random: Random, table: Table, setting: Setting) -> list[Act]:
    found = [(column, new) for column in table.others for kind, new in WIDENED if column.kind is kind]
    if not found:
        return []
    column, new = random.choice(found)
    step = f"ALTER TABLE {table.sql} ALTER COLUMN {column.sql} TYPE {new}"
    justified = reasons.copied_since(column.name, new)
    return acts(random, f"{column.type} becomes {new}", table, setting, [step], justified)


def change_values(random: Random, table: Table, setting: Setting) -> list[Act]:
    """Alter a column to the type that it has, with other values."""
    found = [column for column in table.others if column.type in _REWRITTEN]
    if not found:
        return []
    column = random.choice(found)
    using = _REWRITTEN[column.type].format(column.sql)
    step = f"ALTER TABLE {table.sql} ALTER COLUMN {column.sql} TYPE {column.type} USING {using}"
    return acts(random, "change the values of a column", table, setting, [step])


def retype_key(random: Random, table: Table, setting: Setting) -> list[Act]:
    column = random.choice(table.keys)
    # Even if only its collation differs.
    justified = [reasons.SORTS_OTHERWISE]
    if column.type.partition(" ")[0] not in ("text", "varchar(20)"):
        justified += reasons.other_key_type(column.name)
    step = f"ALTER TABLE {table.sql} ALTER COLUMN {column.sql} TYPE text"
    return acts(random, "retype the key", table, setting, [step], *justified)


def rename_label(random: Random, table: Table, setting: Setting) -> list[Act]:
    old = random.choice(("sad", "o,k", "glad"))
    steps = [f"ALTER TYPE ext.mood RENAME VALUE {quoted(old)} TO {quoted(old + ' again')}"]
    return acts(random, "rename a label", table, setting, steps)


def add_label(random: Random, table: Table, setting: Setting) -> list[Act]:
    step = f"ALTER TYPE ext.mood ADD VALUE {quoted(table.new_name('label '))} BEFORE 'o,k'"
    return [Act("add a label", (step,), Ending.ALONE)]


def change_composite(random: Random, table: Table, setting: Setting) -> list[Act]:
    step = random.choice(("ADD ATTRIBUTE c int", "DROP ATTRIBUTE b"))
    return acts(random, "change a composite", table, setting, [f"ALTER TYPE ext.pair {step}"])


def resnapshot(table: Table) -> Act:
    """Have a table re-snapshotted, as an operator does."""
    return Act("re-snapshot it", table=table.qualified)


def reads_again(random: Random, table: Table, setting: Setting) -> list[Act]:
    return [resnapshot(table)]


_UP_TO_INT4: Final = ("int2", "int4", '"int2"', '"int4"')
_REWRITTEN: Final = {"text": "upper({0})", "int4": "{0} + 1", "numeric": "{0} + 1", "varchar(9)": "upper({0})"}
"""Type → an expression of it that yields other values."""

COLUMN_CHANGES: Final[tuple[Change, ...]] = (
    add_column,
    add_filled_column,
    drop_column,
    drop_and_add_column,
    drop_and_add_column,
    rename_column,
    swap_columns,
    *(retype_column,) * 5,
    widen_column,
    change_values,
    retype_key,
    rename_label,
    add_label,
    change_composite,
    reads_again,
    reads_again,
)


def _any(random: Random, columns: list[Column]) -> Column | None:
    return random.choice(columns) if columns else None

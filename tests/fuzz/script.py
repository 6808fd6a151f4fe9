"""A round as data: everything that is drawn from its seed, before anything happens."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from tests.fuzz.acts import BEGIN, CATCH_UP, KILL, START, STOP, Act
from tests.fuzz.changes import COLUMN_CHANGES, Change, Setting
from tests.fuzz.partition_changes import PARTITION_CHANGES
from tests.fuzz.reasons import not_validated, virtual_in_identity
from tests.fuzz.shapes import Table, names_of, random_table, statements, validated
from tests.fuzz.source_changes import SOURCE_CHANGES
from tests.fuzz.table_changes import TABLE_CHANGES
from tests.fuzz.values import CODECS
from tests.fuzz.writes import large_transaction, rows, transaction

_SETTINGS: Final = (
    "statement_timeout = '30ms'",
    "lock_timeout = '10ms'",
    "idle_in_transaction_session_timeout = '20ms'",
    "idle_session_timeout = '800ms'",
    "default_transaction_read_only = on",
    "default_transaction_isolation = 'serializable'",
    "default_transaction_deferrable = on",
    "row_security = off",
    "client_min_messages = 'error'",
    "search_path = ''",
    'search_path = ext, "Sch ema", public',
    'search_path = "s""q"',
    "DateStyle = 'German'",
    "DateStyle = 'SQL, DMY'",
    "IntervalStyle = 'iso_8601'",
    "TimeZone = 'Asia/Kathmandu'",
    "extra_float_digits = 0",
    "bytea_output = 'escape'",
    "xmloption = 'document'",
    "quote_all_identifiers = on",
    "standard_conforming_strings = off",
    "array_nulls = off",
    "transform_null_equals = on",
    "enable_seqscan = off",
    "enable_indexscan = off",
    "synchronous_commit = off",
    "client_encoding = 'LATIN1'",
    "session_replication_role = 'replica'",
    "plan_cache_mode = 'force_generic_plan'",
)
_SETTINGS_SINCE_17: Final = ("transaction_timeout = '50ms'",)

_CHANGES: Final = (*COLUMN_CHANGES, *TABLE_CHANGES, *SOURCE_CHANGES, *PARTITION_CHANGES)


@dataclass(frozen=True)
class Script:
    """The acts of a round. `tables` are the names of the captured tables, `first` creates them and their rows.

    `settings` are the database's, `role_settings` the role's in it. With `owned` the producer's role owns the tables
    and is not a superuser; with `python_codec` it encodes rows as without a compiler.
    """

    seed: int
    encoding: str
    settings: tuple[str, ...]
    tables: tuple[str, ...]
    first: tuple[Act, ...]
    acts: tuple[Act, ...]
    chunk_rows: int
    role_settings: tuple[str, ...] = ()
    owned: bool = False
    python_codec: bool = False
    checked: bool = True
    """Whether `headrace check` runs at the end; it always does if a start is refused."""

    def described(self) -> str:
        settings = "; ".join(self.settings + self.role_settings)
        role = "the tables' owner" if self.owned else "a superuser"
        lines = [f"-- database: {self.encoding}, chunks of {self.chunk_rows} rows, role: {role}; {settings}"]
        for act in (*self.first, *self.acts):
            lines.append(f"-- {act.what}{f' ({act.table})' if act.table else ''} {act.ending.value}".rstrip())
            lines += [f"{statement};" for statement in act.statements]
        return "\n".join(line if len(line) < 900 else f"{line[:900]} …" for line in lines)


def draw(seed: int, version: int, only: tuple[str, ...] = ()) -> Script:
    """Return a seed's round; `only` are the names of the allowed changes, by default all."""
    random = Random(f"{seed} on {version}")
    encoding = random.choice(("UTF8", "UTF8", "UTF8", "UTF8", *CODECS))
    collations = ('"C"', '"POSIX"', *(('"und-x-icu"', '"en-x-icu"') if encoding == "UTF8" and version < 18 else ()))
    codec = CODECS[encoding]
    # The first table is never changed, so that one always continues.
    tables = [random_table(random, number, version, collations) for number in range(random.choice((2, 3, 3, 4)))]
    names = tuple(table.qualified for table in tables)
    setting = Setting(version, encoding, codec, tables, owned=random.random() < 0.4)
    first = [_made(random, table) for table in tables]
    first += [rows(random, table, codec, count) for table in tables if (count := random.choice((0, 3, 12, 25, 60)))]
    known = _SETTINGS + (_SETTINGS_SINCE_17 if version >= 17 else ())
    settings = random.sample(known, random.choice((0, 1, 1, 2, 3)))
    acts: list[Act] = []
    changes = random.choice((0, 1, 2, 3))
    sessions = random.choice((1, 2, 2, 3))
    for session in range(sessions):
        acts.append(START)
        acts += _work(random, setting, changes, only)
        acts.append(random.choice((STOP, KILL, KILL)))
        if session + 1 < sessions:
            acts += _work(random, setting, random.choice((0, 1, 1)), only)
    return Script(
        seed,
        encoding,
        tuple(settings[::2]),
        names,
        tuple(first),
        tuple(acts),
        random.choice((1, 2, 3, 3, 7, 50)),
        tuple(settings[1::2]),
        owned=setting.owned,
        python_codec=random.random() < 0.2,
        checked=random.random() < 0.3,
    )


def _made(random: Random, table: Table) -> Act:
    steps = tuple(statements(random, table))
    justified: list[str] = []
    repairs: list[str] = []
    if table.virtual and any("REPLICA IDENTITY FULL" in step for step in steps):
        justified += virtual_in_identity(table.qualified, [column.name for column in table.virtual])
        repairs += table.defaults
    if table.null_key:
        justified += not_validated(table.qualified, names_of(table.keys))
        repairs += validated(table)
    return Act("make a table", steps, table=table.qualified, justifies=tuple(justified), repairs=tuple(repairs))


def _work(random: Random, setting: Setting, changes: int, only: tuple[str, ...]) -> list[Act]:
    made: list[Act] = random.choices(([CATCH_UP], [BEGIN], []), (5, 3, 2))[0][:]
    for _ in range(random.choice((2, 4, 8))):
        made.append(transaction(random, setting.tables, setting.codec))
        if random.random() < 0.15:
            made.append(CATCH_UP)
    if random.random() < 0.15:
        made.append(large_transaction(random, random.choice(setting.tables), setting.codec))
    for _ in range(changes):
        made += change(random, setting, only)
        if random.random() < 0.7:
            made.append(transaction(random, setting.tables, setting.codec))
    return made


def change(random: Random, setting: Setting, only: tuple[str, ...]) -> list[Act]:
    """Return one change of a table that may be changed, and the writes in between."""
    table: Table = random.choice(setting.tables[1:])
    wanted: tuple[Change, ...] = tuple(each for each in _CHANGES if each.__name__ in only)
    if not only:
        usual = random.choices((COLUMN_CHANGES, TABLE_CHANGES, SOURCE_CHANGES), (5, 2, 3))[0]
        wanted = PARTITION_CHANGES if table.partitioned and random.random() < 0.6 else usual
    possible = [each for each in wanted if table.partitioned or each not in PARTITION_CHANGES]
    for _ in range(4 if possible else 0):  # a change may not be possible for the table
        if made := random.choice(possible)(random, table, setting):
            return made
    return []

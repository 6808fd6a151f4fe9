"""Random tables as modelled by the fuzz: columns, key, identity, partitions, and their SQL."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Final

from tests.fuzz.values import (
    FAR,
    KEYS,
    LARGE,
    MOOD,
    PAIR,
    RETYPED,
    SMALL,
    WIDENED,
    Kind,
    identifier,
    plain_kinds,
    quoted,
)

SCHEMAS: Final = ("public", "public", "Sch-ema", 's"q')
_NAMES: Final = ("t", "MiXed", "semi;colon", 'quo"te', "o'clock", "select", "x%y", "_1", "$d", "café", "order")
COLUMN_NAMES: Final = ("v", "Val", "a b", 'q"c', "it's", "from", "c%", "é", "_x", "n$", "user", "headrace", "op", "z")
STEP: Final = 100
"""Number of keys in a partition."""


@dataclass
class Column:
    name: str
    kind: Kind
    type: str
    not_null: bool = False
    generated: bool = False
    virtual: bool = False
    key: bool = False
    former: tuple[str, ...] = ()
    """Its previous name: its name in the topic, for a producer that has not seen the new one yet."""

    @property
    def sql(self) -> str:
        return identifier(self.name)


def names_of(columns: Iterable[Column]) -> list[str]:
    """Return every name that a producer may know the columns by."""
    return [name for column in columns for name in (column.name, *column.former)]


@dataclass
class Partition:
    name: str
    number: int | None
    """The number of its key range; None: the default partition."""
    attached: bool = True


@dataclass
class Table:
    """A captured table; `schema` and `name` are its name in the settings, even after a rename."""

    schema: str
    name: str
    columns: list[Column]
    identity: str = "DEFAULT"
    unique_only: bool = False
    """Whether its key is that of a replica identity index, because it has no primary key."""
    null_key: bool = False
    """Whether it has a row without a key, from before its columns were NOT NULL (NOT VALID, from version 18)."""
    key_name: str = "pk"
    partitions: list[Partition] = field(default_factory=list)
    made: int = 0
    """Number of names given to columns and partitions that were added later."""

    @property
    def qualified(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def sql(self) -> str:
        return f"{identifier(self.schema)}.{identifier(self.name)}"

    @property
    def schema_sql(self) -> str:
        return identifier(self.schema)

    @property
    def name_sql(self) -> str:
        return identifier(self.name)

    @property
    def index_sql(self) -> str:
        """The index of a table that is `unique_only`."""
        return identifier(f"{self.name}_index")

    @property
    def safe_identity(self) -> str:
        """The replica identity with exactly its key."""
        return f"USING INDEX {self.index_sql}" if self.unique_only else "DEFAULT"

    @property
    def given_identity(self) -> str:
        """The replica identity that it was created with."""
        return self.safe_identity if self.identity == "DEFAULT" else self.identity

    @property
    def defaults(self) -> list[str]:
        """The statements that set the identity of the table, and of each partition, to exactly its key."""
        mine = [f"ALTER TABLE {self.sql} REPLICA IDENTITY {self.safe_identity}"]
        return mine + [f"ALTER TABLE {self.leaf(each)} REPLICA IDENTITY DEFAULT" for each in self.partitions]

    @property
    def virtual(self) -> list[Column]:
        return [column for column in self.columns if column.virtual]

    @property
    def partitioned(self) -> bool:
        return bool(self.partitions)

    @property
    def keys(self) -> list[Column]:
        return [column for column in self.columns if column.key]

    @property
    def written(self) -> list[Column]:
        return [column for column in self.columns if not column.generated]

    @property
    def others(self) -> list[Column]:
        """The columns that may be changed without changing the key."""
        return [column for column in self.columns if not column.generated and not column.key]

    def leaf(self, partition: Partition) -> str:
        return f"{identifier(self.schema)}.{identifier(partition.name)}"

    def new_name(self, prefix: str) -> str:
        self.made += 1
        return f"{prefix}{self.made}"


def random_table(random: Random, number: int, version: int, collations: tuple[str, ...]) -> Table:
    """Return a table that can be captured; `number` is part of its name."""
    columns = [_key_column(random, "id", collations)]
    if random.random() < 0.3:
        columns.append(_key_column(random, random.choice(("Key 2", "k")), collations))
    partitioned = random.random() < 0.35
    if partitioned:
        columns[0] = Column("id", KEYS_OF_PARTITIONS, "int4", not_null=True, key=True)
    if random.random() < 0.15:
        columns.reverse()
    kinds = plain_kinds(version)
    names = random.sample(COLUMN_NAMES, random.randrange(1, 6))
    for name in names:
        changing = random.choice(RETYPED + WIDENED)[0]
        kind = random.choice(
            (random.choice(kinds), random.choice(kinds), changing, changing, MOOD, PAIR, LARGE, SMALL, FAR)
        )
        columns.insert(random.randrange(len(columns) + 1), Column(name, kind, kind.name))
    if random.random() < 0.7:
        columns.append(Column("large", LARGE, "text"))
    if random.random() < 0.2:
        stored = version < 18 or random.random() < 0.5
        made = "GENERATED ALWAYS AS (41 + 1) " + ("STORED" if stored else "VIRTUAL")
        columns.append(Column("made", SMALL, f"int {made}", generated=True, virtual=not stored))
    name = f"{random.choice(_NAMES)}{number}"
    table = Table(random.choice(SCHEMAS), name, columns, key_name=f"pk{number}")
    if partitioned:
        ranges: list[int | None] = [0, 1, 2] if random.random() < 0.5 else [0, 1, None]
        table.partitions = [Partition(f"{name}_p{place}", place) for place in ranges]
    table.unique_only = not partitioned and random.random() < 0.15
    table.null_key = table.unique_only and version >= 18 and random.random() < 0.3
    table.identity = "DEFAULT" if table.unique_only or random.random() < 0.6 else "FULL"
    return table


KEYS_OF_PARTITIONS: Final = Kind("int4", lambda random: str(random.randrange(3 * STEP)))


def _key_column(random: Random, name: str, collations: tuple[str, ...]) -> Column:
    kind = random.choice(KEYS)
    chosen = f" COLLATE {random.choice(collations)}" if kind.collatable and random.random() < 0.6 else ""
    return Column(name, kind, kind.name + chosen, not_null=True, key=True)


def statements(random: Random, table: Table) -> list[str]:
    """Return the statements that create the table."""
    listed = [
        f"{column.sql} {column.type}{' NOT NULL' if column.not_null and not table.null_key else ''}"
        for column in table.columns
    ]
    key = ", ".join(column.sql for column in table.keys)
    if not table.unique_only:
        listed.append(f"CONSTRAINT {table.key_name} PRIMARY KEY ({key})")
    by = f" PARTITION BY RANGE ({identifier('id')})" if table.partitioned else ""
    made = [f"CREATE TABLE {table.sql} ({', '.join(listed)}){by}"]
    if table.null_key:
        made.append(f"INSERT INTO {table.sql} DEFAULT VALUES")
        made += [f"ALTER TABLE {table.sql} ADD {each}" for each in not_valid(table)]
    for column in table.columns:
        if column.kind is LARGE:
            made.append(f"ALTER TABLE {table.sql} ALTER {column.sql} SET STORAGE EXTERNAL")
    for partition in table.partitions:
        made.append(f"CREATE TABLE {table.leaf(partition)} PARTITION OF {table.sql} {bounds(partition)}")
        if table.identity == "FULL" and random.random() < 0.5:
            made.append(f"ALTER TABLE {table.leaf(partition)} REPLICA IDENTITY FULL")
    if table.unique_only:
        made.append(f"CREATE UNIQUE INDEX {table.index_sql} ON {table.sql} ({key})")
    if table.unique_only or table.identity == "FULL":
        made.append(f"ALTER TABLE {table.sql} REPLICA IDENTITY {table.given_identity}")
    return made


def not_valid(table: Table) -> list[str]:
    """Return the constraints that old rows without a key may violate, but new rows may not."""
    return [
        f"CONSTRAINT {identifier(f'not null {place}')} NOT NULL {column.sql} NOT VALID"
        for place, column in enumerate(table.keys)
    ]


def validated(table: Table) -> list[str]:
    """Return the statements that make them valid: the remedy that headrace names."""
    none = " OR ".join(f"{column.sql} IS NULL" for column in table.keys)
    return [f"DELETE FROM {table.sql} WHERE {none}"] + [
        f"ALTER TABLE {table.sql} VALIDATE CONSTRAINT {identifier(f'not null {place}')}"
        for place, _ in enumerate(table.keys)
    ]


def bounds(partition: Partition) -> str:
    if partition.number is None:
        return "DEFAULT"
    return f"FOR VALUES FROM ({partition.number * STEP}) TO ({(partition.number + 1) * STEP})"


def row(random: Random, table: Table, codec: str) -> str:
    """Return the values of a new row, for `table.written`."""
    return ", ".join(value(random, column, codec) for column in table.written)


def value(random: Random, column: Column, codec: str) -> str:
    """Return a value of a column that its database's encoding can represent."""
    if not column.not_null and random.random() < 0.15:
        return "NULL"
    for _ in range(20):
        drawn = column.kind.draw(random)
        if column.kind.expression:
            return drawn
        try:
            drawn.encode(codec)
        except UnicodeEncodeError:
            continue
        return quoted(drawn)
    return "''" if column.not_null else "NULL"

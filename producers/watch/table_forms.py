"""Reads the forms of captured tables from the catalog: columns, types and storage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from hashlib import blake2b
from typing import Any, Final

import psycopg
from psycopg import sql

from infra.postgres.connect import one_snapshot
from infra.state.positions import ColumnForm, FormState
from producers.source.partitions import PARTITION_TREE
from schemas.positions import parse_lsn

_MOST_PARTS: Final = 200
"""An enum with more labels is recorded as one digest, to keep the table's record small."""

_FEW: Final = 8
"""How many of the oldest and of the newest partitions are recorded: one that remains is enough."""

_COLUMNS: Final = """
SELECT a.attrelid::bigint, a.attname::text, a.attnum::int, a.xmin::text::bigint, a.attcollation::bigint,
       a.attgenerated OPERATOR(pg_catalog.<>) '', a.atttypid::bigint
FROM pg_catalog.pg_attribute a
WHERE a.attrelid OPERATOR(pg_catalog.=) ANY(%s::oid[]) AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped
"""

_STORAGE: Final = PARTITION_TREE + sql.SQL("""
SELECT tree.root::bigint, c.oid::text, c.relfilenode::bigint
FROM tree JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) tree.node
WHERE c.relfilenode OPERATOR(pg_catalog.<>) 0
ORDER BY c.oid
""")

_PARTS: Final = """
WITH RECURSIVE reached (root, oid) AS (
  SELECT used, used FROM pg_catalog.unnest(%s::oid[]) used
  UNION
  SELECT r.root, inner_type.oid
  FROM reached r JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) r.oid
  CROSS JOIN LATERAL (
    SELECT t.typelem UNION ALL SELECT t.typbasetype
    UNION ALL SELECT n.rngsubtype FROM pg_catalog.pg_range n
     WHERE t.oid OPERATOR(pg_catalog.=) n.rngtypid OR t.oid OPERATOR(pg_catalog.=) n.rngmultitypid
    UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a
     WHERE a.attrelid OPERATOR(pg_catalog.=) t.typrelid AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped
  ) inner_type (oid)
  WHERE inner_type.oid OPERATOR(pg_catalog.>=) '16384'::oid)
SELECT r.root::bigint, 'enum ' || r.oid::text, e.oid::text, e.xmin::text::bigint
FROM reached r JOIN pg_catalog.pg_enum e ON e.enumtypid OPERATOR(pg_catalog.=) r.oid
UNION ALL
SELECT r.root::bigint, 'composite ' || r.oid::text, a.attnum::text || CASE WHEN a.attisdropped THEN '-' ELSE '' END,
       a.xmin::text::bigint
FROM reached r JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) r.oid
JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) t.typrelid AND a.attnum OPERATOR(pg_catalog.>) 0
WHERE t.typtype OPERATOR(pg_catalog.=) 'c'
ORDER BY 1, 2, 3
"""
"""Labels and attributes of all types nested in a type: arrays, domains, ranges, composites.

Built-in types (below 16384) have neither. A row of pg_attribute remains when its attribute is dropped.
"""

_LSN: Final = "SELECT pg_catalog.pg_current_wal_insert_lsn()::text"


class _Parts:
    """The parts of one column type, and the transactions that created or changed them."""

    def __init__(self, found: Iterable[tuple[str, str, int]]) -> None:
        by_type: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
        for of_type, part, version in found:
            by_type[of_type].append((part, version))
        self.versions: dict[str, str] = {}
        self.xids = [version for parts in by_type.values() for _, version in parts]
        for of_type, parts in by_type.items():
            if of_type.startswith("composite"):
                # Renaming an attribute does not change the text, so compare attnums, not xmin.
                self.versions[of_type] = _digest(part for part, _ in parts)
            elif len(parts) > _MOST_PARTS:
                self.versions[of_type] = _digest(f"{part} {version}" for part, version in parts)
            else:
                self.versions |= {f"label {part}": str(version) for part, version in parts}


def table_forms(connection: psycopg.Connection[Any], oids: Collection[int]) -> dict[int, FormState]:
    """Return oid → current form of each existing table."""
    wanted = list(oids)
    # A column read before a rewrite and storage read after it would hide the rewrite.
    with one_snapshot(connection):
        columns = connection.execute(_COLUMNS, (wanted,)).fetchall()
        files = connection.execute(_STORAGE, {"oids": wanted}).fetchall()
        types = {row[-1] for row in columns if row[-1] >= 16384}
        found = connection.execute(_PARTS, (list(types),)).fetchall() if types else []
        row = connection.execute(_LSN).fetchone()
    assert row is not None
    storage: defaultdict[int, list[tuple[str, int]]] = defaultdict(list)
    for root, *file in files:
        storage[root].append(tuple(file))
    by_type: defaultdict[int, list[tuple[str, str, int]]] = defaultdict(list)
    for type_oid, *part in found:
        by_type[type_oid].append(tuple(part))
    parts = {type_oid: _Parts(each) for type_oid, each in by_type.items()}
    forms: defaultdict[int, dict[str, ColumnForm]] = defaultdict(dict)
    for oid, name, number, version, collation, generated, type_oid in columns:
        of_type = parts.get(type_oid)
        forms[oid][name] = ColumnForm(
            number=number,
            version=version,
            collation=collation,
            generated=generated,
            types=of_type.versions if of_type else {},
            touched=of_type is not None and any(_newer(xid, version) for xid in of_type.xids),
        )
    lsn = parse_lsn(row[0])
    return {oid: FormState(columns=each, storage=_some(storage[oid]), lsn=lsn) for oid, each in forms.items()}


def _some(files: list[tuple[str, int]]) -> dict[str, int]:
    """Return the files of the oldest and newest partitions: a statement that rewrites one rewrites all."""
    return dict([*files[:_FEW], *files[-_FEW:]])


def _newer(xid: int, than: int) -> bool:
    """Whether a transaction id is newer than another by PostgreSQL's modular comparison."""
    return min(xid, than) > 2 and 0 < (xid - than) % (1 << 32) < 1 << 31


def _digest(parts: Iterable[str]) -> str:
    return blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()

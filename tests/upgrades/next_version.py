"""headrace with every format one version higher: `python -m tests.upgrades.next_version …` acts like `headrace …`.

The format changes are real: columns of tables, keys of documents and of settings have other names. The program is the
present one, so this build puts the new names into each statement that it sends, and translates each document that it
reads back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import psycopg
from psycopg import sql

from infra.postgres import control, table_format
from schemas import formats
from schemas.formats import Format

PROGRAM: Final = "99.0.0"

COLUMNS: Final = {"next_offset": "read_up_to", "beaten_at": "last_beat"}
"""For headrace's tables: the old name → the new one."""

KEYS: Final = {
    "positions": {"confirmed_lsn": "flushed_lsn", "chunks_done": "chunks_copied"},
    "schemas": {"subject": "of"},
    "settings": {"prefix": "topic_prefix"},
}
"""For documents, likewise."""

UPGRADE: Final = """
ALTER TABLE headrace.progress RENAME COLUMN next_offset TO read_up_to;
ALTER TABLE headrace.heartbeat RENAME COLUMN beaten_at TO last_beat;
ALTER TABLE headrace.database ALTER COLUMN format SET DEFAULT 2;
"""

_OLD: Final = re.compile(r"\b(" + "|".join(COLUMNS) + r")\b")


class Renamed(Format):
    """The next format of a document: some keys have other names."""

    def __init__(self, before: Format, names: Mapping[str, str]) -> None:
        super().__init__(before.what, before.version + 1, {before.version: lambda old: _renamed(old, names)})
        self.__dict__["names"] = names

    def write(self, document: Mapping[str, Any]) -> dict[str, Any]:
        return super().write(_renamed(document, self.__dict__["names"]))

    def read(self, document: object, where: str) -> dict[str, Any]:
        return _renamed(super().read(document, where), {new: old for old, new in self.__dict__["names"].items()})


def _renamed(document: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in document.items()}


def _statement(text: str) -> str:
    return text if text == UPGRADE else _OLD.sub(lambda found: COLUMNS[found[0]], text)


def install() -> None:
    """Make this process one of the next version."""
    for name, before in formats.every().items():
        after = Renamed(before, KEYS[name]) if name in KEYS else replace(before, version=before.version + 1)
        setattr(formats, name.upper(), after)
    setattr(formats, "PROGRAM", PROGRAM)  # noqa: B010  # a constant of every other version
    setattr(table_format, "step_sql", {1: UPGRADE}.__getitem__)  # noqa: B010  # likewise
    made = control.control_sql()
    control.control_sql = lambda: _statement(made).replace("DEFAULT 1,\n    format_by", "DEFAULT 2,\n    format_by")
    execute = psycopg.Cursor.execute

    def translated(self: Any, query: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(query, sql.Composable):
            query = query.as_string(self)
        if isinstance(query, bytes):
            return execute(self, _statement(query.decode()).encode(), *arguments, **options)
        return execute(self, _statement(query), *arguments, **options)

    psycopg.Cursor.execute = translated  # type: ignore[method-assign]  # what every statement goes through


if __name__ == "__main__":
    install()
    import headrace

    headrace.main()

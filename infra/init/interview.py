"""Asks for the settings on a terminal: tests each answer, proposes gitlab schemas, and writes the settings file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeVar

from pydantic import SecretStr, ValidationError

from infra.kafka import clients
from infra.postgres import connect
from infra.settings.description.toml_text import toml_value
from infra.settings.gitlab_dictionary import read_dictionary
from infra.settings.model import DatabaseSettings, KafkaSettings
from schemas import gitlab_schemas as labels
from schemas.errors import HeadraceError, SettingsError

Ask = Callable[[str, str], str]
"""Called with a question and the answer that an empty line means; returns the answer."""
Say = Callable[[str], None]
T = TypeVar("T")

_DSN: Final = "postgresql://headrace@127.0.0.1:5432/gitlabhq"
_SECRET: Final = re.compile(r"password|://[^/@]*:")
_TABLES: Final = """
SELECT n.nspname::pg_catalog.text, c.relname::pg_catalog.text
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
 WHERE c.relkind OPERATOR(pg_catalog.=) ANY (ARRAY['r', 'p']::"char"[]) AND NOT c.relispartition
   AND n.nspname OPERATOR(pg_catalog.<>) ALL (ARRAY['pg_catalog', 'information_schema', 'headrace'])
 ORDER BY 1, 2
"""


class Servers(Protocol):
    """The servers that answers lead to; both methods raise HeadraceError with what is wrong."""

    def tables(self, dsn: str) -> list[str]:
        """Return the tables of a database, as `schema.table`."""

    def require_kafka(self, bootstrap_servers: str) -> None:
        """Raise BrokerUnavailable unless Kafka answers."""


class RealServers:
    """Asks PostgreSQL and Kafka themselves; changes nothing."""

    def tables(self, dsn: str) -> list[str]:
        """Return the tables of a database, as `schema.table`; partitions belong to theirs."""
        section = DatabaseSettings(dsn=SecretStr(dsn), gitlab_schemas=("gitlab_main",))
        with connect.session(section, name="init", reading=True) as connection:
            return [f"{schema}.{table}" for schema, table in connection.execute(_TABLES)]

    def require_kafka(self, bootstrap_servers: str) -> None:
        """Raise BrokerUnavailable unless Kafka answers."""
        clients.ensure_reachable(KafkaSettings(bootstrap_servers=bootstrap_servers))


def interview(example: str, ask: Ask, say: Say, servers: Servers) -> str:
    """Return the text of a settings file: the example with the answers in it.

    An answer that does not work is asked for again, with the reason. A connection string whose login the server refuses
    is kept if it is given twice: `headrace init --sql`, which creates the role, reads it from the file.
    """
    dsn, found = _login(ask, say, servers)
    if found is not None:
        say(f"it has {len(found):,} tables")
    dictionary = ""
    listed = {table: labels.TABLES.get(table, ()) for table in found or ()}
    if any(listed.values()):
        dictionary, listed = _answered(
            ask, say, "GitLab's db/docs, for tables that headrace does not know (empty: none)", "",
            lambda path: _by_dictionary(path, listed),
        )  # fmt: skip
    proposed = _proposed(listed.values())
    if proposed:
        chosen = ask("its gitlab schemas, separated by commas", ", ".join(proposed))
        proposed = _items(chosen)
    elif found is not None:
        say("it is not GitLab's: all its tables are in one gitlab schema, with the database's name")
    default = next((table for table in found or () if table == "public.container_repositories"), "public.*")
    tables = _items(ask("the tables to capture; * and ? are wildcards", default))
    kafka, _ = _answered(ask, say, "Kafka's address", "127.0.0.1:9092", servers.require_kafka)
    values: dict[str, str | list[str]] = {"dsn": dsn, "tables": tables, "bootstrap_servers": kafka}
    if dictionary:
        values["gitlab_dictionary"] = str(Path(dictionary).absolute())
    if "gitlab_main" not in proposed:
        example = _without_section(example, "migrations.skip_resets")
    return _filled(example, {**values, "gitlab_schemas": proposed})


def _login(ask: Ask, say: Say, servers: Servers) -> tuple[str, list[str] | None]:
    """Return the connection string, and the tables of the database; None if it is kept without a connection."""
    refused = ""

    def attempt(dsn: str) -> list[str] | None:
        nonlocal refused
        try:
            return servers.tables(dsn)
        except SettingsError as error:
            if dsn == refused:
                say("kept without a test: run `headrace init --sql` next; without gitlab_schemas it is not GitLab's")
                return None
            refused = dsn
            raise SettingsError(f"{error}; the same answer again keeps it", remedy="") from None

    return _answered(ask, say, "PostgreSQL's connection string", _DSN, attempt)


def _answered(ask: Ask, say: Say, question: str, default: str, attempt: Callable[[str], T]) -> tuple[str, T]:
    """Return the first answer that works, and what it led to. The one before is the next default, unless a default of
    none would be lost, or a password be shown.
    """
    while True:
        answer = ask(question, default).strip()
        if default and answer and not _SECRET.search(answer):
            default = answer
        try:
            return answer, attempt(answer)
        except HeadraceError as error:
            say(str(error))
        except ValidationError as error:
            say(error.errors(include_input=False, include_url=False)[0]["msg"].removeprefix("Value error, "))


def _by_dictionary(path: str, listed: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    if not path:
        return listed
    dictionary = read_dictionary(Path(path))
    return {
        table: (label,) if (label := dictionary.gitlab_schema(table)) is not None else known
        for table, known in listed.items()
    }


def _proposed(listed: Collection[tuple[str, ...]]) -> list[str]:
    """Return the gitlab schemas of the tables, the most frequent first; none if most tables have none."""
    certain = Counter(each[0] for each in listed if len(each) == 1)
    return [label for label, _ in certain.most_common()] if 2 * certain.total() >= len(listed) else []


def _items(answer: str) -> list[str]:
    return [item.strip() for item in answer.split(",") if item.strip()]


def _filled(example: str, values: Mapping[str, str | Sequence[str]]) -> str:
    """Return the example with these values of its keys, some of which it has as comments; no value: a comment."""
    lines = example.splitlines()
    for key, value in values.items():
        place = next(number for number, line in enumerate(lines) if line.removeprefix("# ").startswith(f"{key} = "))
        lines[place] = f"{key} = {toml_value(value)}" if value else f"# {lines[place].removeprefix('# ')}"
    return "\n".join(lines) + "\n"


def _without_section(example: str, name: str) -> str:
    """Return the example with a section as a comment, up to the next empty line."""
    before, heading, rest = example.partition(f"[{name}]\n")
    section, empty, after = rest.partition("\n\n")
    lines = f"{heading}{section}".splitlines()
    commented = "\n".join(line if line.startswith("#") else f"# {line}" for line in lines)
    return f"{before}{commented}{empty}{after}"

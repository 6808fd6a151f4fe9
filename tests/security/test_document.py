"""docs/reference/security.md matches the code: the tests it names exist, and its table has the granted rights."""

from __future__ import annotations

import re
from pathlib import Path

from consumers.migrations.skip_resets import SkipResets
from consumers.operations import rights as consumer_rights
from infra.rights.acls import Acl
from infra.settings.model import DatabaseSettings, Settings
from producers.source import rights as producer_rights

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "reference" / "security.md").read_text(encoding="utf-8")
SETTINGS = Settings(
    databases={
        "main": DatabaseSettings(
            dsn="postgresql://h@127.0.0.1/d",  # type: ignore[arg-type]
            gitlab_schemas=("gitlab_main", "gitlab_shared"),
        )
    }
)


def test_every_test_named_by_the_document_exists() -> None:
    named = set(re.findall(r"tests/[\w/]+\.py", DOCUMENT))
    assert len(named) >= 10
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def rows(column: int) -> dict[str, set[str]]:
    """Return the table of Kafka's rights: resource → operations, of the producer (1) or the consumers (2)."""
    table = DOCUMENT.partition("### Kafka")[2].partition("`kafka.producer_principal`")[0]
    found: dict[str, set[str]] = {}
    before = ""
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if len(cells) == 3 and "`" in cells[0]:
            before = before if cells[column] == "the same" else cells[column]
            operations = set() if before == "none" else set(before.split(", "))
            found[re.findall(r"`([^`]+)`", cells[0])[0].removesuffix("…")] = operations
    return {name: operations for name, operations in found.items() if operations}


def granted(acls: list[Acl]) -> dict[str, set[str]]:
    return {acl.name: {operation.value for operation in acl.operations} for acl in acls}


def test_table_has_the_rights_granted_in_kafka() -> None:
    assert rows(1) == granted(list(producer_rights.acls(SETTINGS, "main")))
    assert rows(2) == granted(list(consumer_rights.acls(SETTINGS, SkipResets)))

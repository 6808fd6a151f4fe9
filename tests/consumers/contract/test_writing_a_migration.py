"""The migration in docs/how-to/writing-a-migration.md runs from a folder outside of the checkout.

Its tests are run with the page's commands, by tests/docs/test_commands.py.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.consumers.container_repositories import Feed, fill

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "writing-a-migration.md"
NAMES = ("name_repositories.py", "test_name_repositories.py", "name_repositories_case.py")
"""The documented files, in the page's order."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "migrations"
    made.mkdir()
    texts = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    for name, text in zip(NAMES, texts, strict=True):
        (made / name).write_text(text, encoding="utf-8")
    return made


@pytest.fixture
def own(config: Path, folder: Path) -> Path:
    """The settings file, with the folder."""
    config.write_text(f'plugin_paths = ["./{folder.name}"]\n{config.read_text()}')
    return config


def headrace(*words: str, config: Path) -> subprocess.CompletedProcess[str]:
    return _run(["headrace", *words, "name_repositories", "--config", str(config)], config.parent)


def _run(module: Sequence[str], directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *module], cwd=directory, capture_output=True, text=True, check=False
    )  # fmt: skip


@pytest.mark.stack
def test_documented_migration_runs(own: Path, feed: Feed, connection: psycopg.Connection[Any]) -> None:
    fill(connection, dict.fromkeys(range(1, 11), ("default", None)))
    connection.execute("UPDATE container_repositories SET name = '' WHERE id <= 3")
    records = []
    for key in range(1, 11):
        feed.lsn += 8
        row = feed.row(key, "default", None)
        row[2] = b"" if key <= 3 else row[2]
        prefix = feed.encoder.event_prefix("c", lsn=feed.lsn, xid=7, ts_ms=0)  # type: ignore[arg-type]
        records.append(feed.encoder.change(prefix, 0, 0, row))
    feed.send(records)

    left = headrace("verify", config=own)
    assert left.returncode == 1
    assert "3 rows are left" in left.stderr

    ran = headrace("consume", "--until-caught-up", "--json", config=own)
    assert ran.returncode == 0, ran.stderr
    totals = json.loads(ran.stdout)
    assert (totals["applied"], totals["skipped"]) == (3, 7)
    named = connection.execute("SELECT id FROM container_repositories WHERE name = 'unnamed' ORDER BY id").fetchall()
    assert named == [(1,), (2,), (3,)]
    assert headrace("verify", config=own).returncode == 0


@pytest.mark.parametrize("command", [["ruff", "check"], ["ruff", "format", "--check", "--line-length=120"]])
def test_documented_files_pass_the_defaults_of_ruff(folder: Path, command: list[str]) -> None:
    ran = _run([*command, "--isolated", "--no-cache", "migrations"], folder.parent)
    assert ran.returncode == 0, ran.stdout

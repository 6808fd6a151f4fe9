"""The file in docs/how-to/writing-a-migration.md runs as a migration without edits elsewhere, and its test passes."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.consumers.container_repositories import Feed, fill

CHECKOUT = Path(__file__).parents[3]
PAGE = CHECKOUT / "docs" / "how-to" / "writing-a-migration.md"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout's code with the documented file added."""
    copy = tmp_path / "checkout"
    for package in ("schemas", "infra", "producers", "consumers"):
        shutil.copytree(CHECKOUT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / "headrace.py", copy)
    migration, its_test = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (copy / "consumers" / "migrations" / "name_repositories.py").write_text(migration, encoding="utf-8")
    (copy / "test_name_repositories.py").write_text(its_test, encoding="utf-8")
    return copy


def headrace(*words: str, checkout: Path, config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "headrace", *words, "name_repositories", "--config", str(config)],
        cwd=checkout,  # Python looks there first, before what is installed
        capture_output=True,
        text=True,
        check=False,
    )


def test_documented_migration_runs(
    checkout: Path, config: Path, feed: Feed, connection: psycopg.Connection[Any]
) -> None:
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

    left = headrace("verify", checkout=checkout, config=config)
    assert left.returncode == 1
    assert "3 rows are left" in left.stderr

    ran = headrace("consume", "--until-caught-up", "--json", checkout=checkout, config=config)
    assert ran.returncode == 0, ran.stderr
    totals = json.loads(ran.stdout)
    assert (totals["applied"], totals["skipped"]) == (3, 7)
    named = connection.execute("SELECT id FROM container_repositories WHERE name = 'unnamed' ORDER BY id").fetchall()
    assert named == [(1,), (2,), (3,)]
    assert headrace("verify", checkout=checkout, config=config).returncode == 0


def test_documented_test_passes(checkout: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_name_repositories.py"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    assert "2 passed" in ran.stdout

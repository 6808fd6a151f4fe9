"""The plugin costs a test run nothing that does not use it, and one failing promise is one failing test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from consumers.operations.authoring.new_migration import NewMigration, files
from consumers.testing.promises import PROMISES

NEW = NewMigration("lower_emails", "public.users", "gitlab_main", sets={"email": "lower(email)"})


def run(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words],
        cwd=directory, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_run_without_its_fixtures_loads_nothing_of_headrace(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text(
        "import sys\n\n\ndef test_own():\n    assert 'consumers.testing.pytest_plugin' in sys.modules\n"
        "    assert not {'psycopg', 'confluent_kafka', 'headrace', 'consumers.testing.promises'} & set(sys.modules)\n"
    )
    ended = run(tmp_path)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.long
@pytest.mark.stack
def test_unguarded_write_fails_the_promises_that_it_breaks_and_no_other(tmp_path: Path) -> None:
    texts = files(NEW)
    guard = "               AND email IS DISTINCT FROM (lower(email))\n"
    assert guard in texts["lower_emails.py"]
    texts["lower_emails.py"] = texts["lower_emails.py"].replace(guard, "")
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    ended = run(tmp_path, "-rA", "-k", "contract")
    passed = {
        promise for promise in PROMISES if f"PASSED test_lower_emails.py::test_contract[{promise}]" in ended.stdout
    }
    assert "migration_run_twice_is_idempotent" not in passed, ended.stdout
    assert "stale_event_changes_nothing" not in passed
    assert "database_without_ownership_is_not_written" in passed

"""PostgreSQL's programs are where the account that runs them reaches them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.stack.embedded import EmbeddedStack
from infra.stack.postgresql.postgres_programs import installed_programs, reachable_programs, require_reachable, runs_as
from infra.stack.processes.keeper import Account, unprivileged_account
from schemas.errors import UsageError

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has another user run PostgreSQL")


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user can enter, as pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def account() -> Account:
    found = unprivileged_account()
    assert found is not None
    return found


def test_ones_that_can_be_reached_are_used_in_place(open_directory: Path) -> None:
    assert reachable_programs(None, open_directory) == installed_programs()
    assert not any(open_directory.iterdir())


@pytest.mark.long
@as_root
def test_ones_in_a_closed_directory_are_copied(open_directory: Path, account: Account) -> None:
    closed = open_directory / "closed"
    package = installed_programs().parent.parent
    shutil.copytree(package / "pginstall", closed / package.name / "pginstall", symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, closed / libraries.name)
    closed.chmod(0o700)
    source = closed / package.name / "pginstall" / "bin"
    assert not runs_as(account, source / "postgres")

    programs = reachable_programs(account, open_directory, source)

    assert programs.is_relative_to(open_directory / "pgsql")
    assert all(runs_as(account, programs / name) for name in ("postgres", "initdb", "pg_basebackup"))
    assert reachable_programs(account, open_directory, source) == programs


@as_root
def test_a_closed_data_directory_is_named(open_directory: Path, account: Account) -> None:
    closed = open_directory / "closed"
    (closed / "deep").mkdir(parents=True)
    closed.chmod(0o700)
    with pytest.raises(UsageError, match=f"cannot enter {closed};"):
        require_reachable(account, closed / "deep")


@as_root
@pytest.mark.stack
def test_a_stack_in_a_closed_directory_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot enter .*; choose a directory that it can reach"):
        EmbeddedStack.started(tmp_path / "stack")

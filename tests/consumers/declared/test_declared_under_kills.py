"""A declared backfill of a text column on a table with a uuid key is killed twice, and changes each row once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import psycopg
import pytest
import tomli_w

from consumers.operations import catalog
from consumers.operations.remaining import remaining
from consumers.testing.table_case import DATABASE, TableCase
from consumers.testing.waiting import PATIENCE, until
from infra.settings.file import load_settings
from tests.conftest import Database
from tests.consumers.conftest import Member
from tests.consumers.declared.declaring import DECLARED, declare
from tests.histories import TIMES

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600 * TIMES)]

ROWS = 9_000 * TIMES
"""A million of `make test HISTORIES=112`."""


class Many(TableCase):
    """Rows without a nick, and as many others."""

    migration: ClassVar = declare()
    create_sql = "CREATE TABLE public.people (id uuid PRIMARY KEY, name text NOT NULL, nick text)"
    insert_sql = f"""
        INSERT INTO public.people
        SELECT md5(n::text)::uuid, 'Name ' || n, CASE WHEN n % 2 = 0 THEN 'own' END FROM generate_series(1, {ROWS}) n
    """
    effect_sql = "UPDATE public.people SET nick = lower(name) WHERE nick IS NULL"


@pytest.fixture
def config(bootstrap_servers: str, prefix: str, database: Database, tmp_path: Path) -> Path:
    """Settings with the declaration, and transactions that are small enough to be killed between two."""
    rows = 10 * min(TIMES, 50)
    path = tmp_path / "headrace.toml"
    path.write_text(
        tomli_w.dumps(
            {
                "prefix": prefix,
                "kafka": {"bootstrap_servers": bootstrap_servers},
                "databases": {
                    DATABASE: {
                        "dsn": database.dsn,
                        "gitlab_schemas": ["own"],
                        "table_schemas": {"public.people": "own"},
                    }
                },
                "migrations": {
                    "nicks": {
                        "batch_size": 50 * rows,
                        "sub_batch_size": rows,
                        "max_rate": 1_000 * TIMES,
                        "declare": DECLARED,
                    }
                },
            }
        )
    )
    return path


@pytest.mark.long
def test_each_row_is_changed_once_whatever_is_killed(
    config: Path, database: Database, members: Callable[..., Member]
) -> None:
    settings = load_settings(config)
    connection: psycopg.Connection[Any] = database.connect()
    case = Many(settings, connection)
    case.insert()
    case.publish()
    before = case.rows()
    for share in (300 * TIMES, 1_500 * TIMES):
        member = members(migration="nicks")
        until(lambda share=share: case.writes() >= share, f"{share} rows are changed")  # type: ignore[misc]
        member.kill()
        member.wait()
    assert case.writes() < ROWS // 2

    member = members(migration="nicks", until_caught_up=True)
    _, problems = member.communicate(timeout=PATIENCE * TIMES)

    assert member.returncode == 0, problems
    assert case.writes() == ROWS // 2
    assert case.rows() == {**before, **case.wanted()}
    assert remaining(settings, catalog.configured(settings, "nicks"), DATABASE) == 0

"""Builds a GitLab-shaped database, runs an application on it, and proves by SQL what changed."""

from __future__ import annotations

import random
import threading
from importlib.resources import files
from typing import Any, Final

import psycopg

from infra.postgres.connect import connect
from schemas.lazy_dataclass import dataclass

SKIPPED_SHARE: Final = 27_700 / 1_000_000
"""27,700 of a million rows are skipped for too many tags."""

_PARENTS = """
INSERT INTO namespaces (name, path) SELECT 'Group ' || i, 'group-' || i FROM generate_series(1, %(namespaces)s) i;
"""

_PROJECTS = """
INSERT INTO projects (namespace_id, name, path, visibility_level)
SELECT 1 + i %% %(namespaces)s, 'Project ' || i, 'project-' || i, (i %% 3) * 10 FROM generate_series(1, %(projects)s) i;
"""

# Row i is skipped for too many tags when i * skipped / rows passes a whole number: exactly that many, evenly spread.
_REPOSITORIES = """
INSERT INTO container_repositories (
    project_id, name, created_at, updated_at, expiration_policy_cleanup_status, migration_retries_count,
    migration_state, migration_skipped_reason, migration_skipped_at, migration_pre_import_started_at,
    migration_import_done_at, migration_aborted_in_state, migration_plan)
SELECT 1 + i %% %(projects)s, CASE WHEN i %% 4 = 0 THEN '' ELSE 'image-' || i END,
    timestamptz '2022-01-01 00:00Z' + i * interval '17 seconds',
    timestamptz '2022-06-01 00:00Z' + i * interval '7 seconds',
    i %% 4, i %% 3, state,
    CASE WHEN tags THEN 2 WHEN state = 'import_skipped' THEN (ARRAY[0, 1, 3, 4, 5, 6, 7])[1 + i / 7 %% 7] END,
    CASE WHEN state = 'import_skipped' THEN timestamptz '2022-05-01 12:00Z' + i * interval '1 second' END,
    CASE WHEN state LIKE '%%import%%' AND NOT tags THEN timestamptz '2022-05-01 00:00Z' + i * interval '3 seconds' END,
    CASE WHEN state = 'import_done' THEN timestamptz '2022-05-02 00:00Z' + i * interval '3 seconds' END,
    CASE WHEN state = 'import_aborted' THEN 'importing' END,
    (ARRAY['free', 'premium', 'ultimate', NULL])[1 + i %% 4]
FROM (SELECT i, tags, CASE WHEN tags THEN 'import_skipped' ELSE
        (ARRAY['default', 'pre_importing', 'pre_import_done', 'importing', 'import_done', 'import_aborted',
               'import_skipped'])[1 + i %% 7] END AS state
      FROM (SELECT i, i * %(skipped)s / %(rows)s <> (i - 1) * %(skipped)s / %(rows)s AS tags
            FROM generate_series(1::bigint, %(rows)s) i) numbered) rows;
"""

_READY = """
CREATE TABLE proof.before AS SELECT id, md5(r::text) AS row FROM container_repositories r;
CREATE TRIGGER note AFTER UPDATE ON container_repositories FOR EACH ROW
WHEN (old.migration_state IS DISTINCT FROM new.migration_state
      OR old.migration_skipped_reason IS DISTINCT FROM new.migration_skipped_reason)
EXECUTE FUNCTION proof.note();
"""

_PROOF = """
SELECT
 (SELECT count(*) FROM container_repositories
  WHERE migration_state = 'import_skipped' AND migration_skipped_reason = 2) AS left_over,
 (SELECT count(*) FROM proof.changes WHERE made_by = 'headrace') AS resets,
 (SELECT count(*) - count(DISTINCT id) FROM proof.changes WHERE made_by = 'headrace') AS twice,
 (SELECT count(*) FROM proof.changes WHERE made_by = 'headrace' AND NOT (
    was_state = 'import_skipped' AND was_reason = 2 AND is_state = 'default' AND is_reason IS NULL)) AS wrong,
 (SELECT count(*) FROM proof.changes WHERE made_by = 'application') AS by_application,
 (SELECT count(*) FROM (SELECT DISTINCT ON (id) * FROM proof.changes WHERE made_by = 'application'
                        ORDER BY id, n DESC) a JOIN container_repositories r USING (id)
  WHERE (migration_state, migration_skipped_reason) IS DISTINCT FROM (is_state, is_reason)) AS overwritten,
 (SELECT count(*) FROM container_repositories r JOIN proof.before b USING (id)
  WHERE md5(r::text) <> b.row AND NOT EXISTS (SELECT FROM proof.changes c WHERE c.id = r.id)) AS touched,
 (SELECT count(*) FROM container_repositories) - (SELECT count(*) FROM proof.before) AS inserted
"""


@dataclass(frozen=True)
class Proof:
    """Counts from the database about the migration; `broken` is empty if every claim holds."""

    left_over: int
    resets: int
    twice: int
    wrong: int
    by_application: int
    overwritten: int
    touched: int
    inserted: int

    @property
    def broken(self) -> list[str]:
        """The claims that do not hold, in words."""
        claims = {
            f"{self.left_over} rows are still skipped for too many tags": self.left_over,
            f"{self.twice} rows were reset more than once": self.twice,
            f"{self.wrong} changes did not reset a row skipped for too many tags": self.wrong,
            f"{self.overwritten} rows lost the application's changes": self.overwritten,
            f"{self.touched} other rows changed": self.touched,
        }
        return [claim for claim, count in claims.items() if count]


def skipped_rows(rows: int) -> int:
    """Return how many of `rows` are skipped for too many tags at the start."""
    return max(1, round(rows * SKIPPED_SHARE))


def build(connection: psycopg.Connection[Any], rows: int) -> None:
    """Create and fill the tables, or none: `rows` container repositories with every state and reason."""
    numbers = {
        "rows": rows,
        "skipped": skipped_rows(rows),
        "namespaces": max(1, rows // 1000),
        "projects": max(1, rows // 4),
    }
    with connection.transaction():
        connection.execute(files("infra.demo").joinpath("gitlab.sql").read_text(encoding="utf-8"))
        for statement in (_PARENTS, _PROJECTS, _REPOSITORIES):
            connection.execute(statement, numbers)
        connection.execute(_READY)
    # As in a production table: otherwise autovacuum starts in mid-migration and throttles the consumers.
    connection.execute("VACUUM (ANALYZE)")


def prove(connection: psycopg.Connection[Any]) -> Proof:
    """Query the database for the proof."""
    row = connection.execute(_PROOF).fetchone()
    assert row is not None
    return Proof(*row)


class Application:
    """An application at work: inserts, updates, and decisions about some skipped rows.

    It never skips a row that was reset, so that each row can be reset at most once.
    """

    def __init__(self, dsn: str, rows: int, seed: int = 7, pause: float = 0.005) -> None:
        """`pause` is the number of seconds between two statements."""
        self._dsn = dsn
        self._rows = rows
        self._pause = pause
        self._random = random.Random(seed)  # noqa: S311 - a workload, not a secret
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="application")
        self._failure: BaseException | None = None
        self.statements = 0

    def start(self) -> None:
        """Start working, in a thread."""
        self._thread.start()

    @property
    def working(self) -> bool:
        """Whether no error has stopped it."""
        return self._failure is None

    def stop(self) -> None:
        """Finish the current statement and stop; raises the error that stopped it before."""
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        try:
            with connect(self._dsn, name="demo") as connection:
                connection.execute("SET application_name = 'gitlab'; SET search_path = public")
                while not self._stop.wait(self._pause):
                    self._statement(connection)
                    self.statements += 1
        except BaseException as error:
            self._failure = error

    def _statement(self, connection: psycopg.Connection[Any]) -> None:
        row = self._random.randint(1, self._rows)
        match self._random.randrange(4):
            case 0:  # a new repository; one in ten arrives already skipped
                skipped = self._random.random() < 0.1
                connection.execute(
                    "INSERT INTO container_repositories (project_id, name, migration_state, migration_skipped_reason)"
                    " VALUES (1, %s, %s, %s)",
                    (f"new-{self.statements}", *(("import_skipped", 2) if skipped else ("default", None))),
                )
            case 1:  # ordinary work on a row that is not migrated
                connection.execute(
                    "UPDATE container_repositories SET status = 1, updated_at = now(), migration_state = 'importing'"
                    " WHERE id = %s AND migration_state = 'pre_import_done'",
                    (row,),
                )
            case 2:  # a user decides about a skipped repository before the migration reaches it
                connection.execute(
                    "UPDATE container_repositories SET migration_state = 'import_done', migration_skipped_reason = NULL"
                    " WHERE id = (SELECT id FROM container_repositories WHERE id >= %s"
                    "   AND migration_state = 'import_skipped' AND migration_skipped_reason = 2 ORDER BY id LIMIT 1)"
                    " AND migration_state = 'import_skipped' AND migration_skipped_reason = 2",
                    (row,),
                )
            case _:  # an import is aborted
                connection.execute(
                    "UPDATE container_repositories SET migration_state = 'import_aborted', migration_aborted_at = now()"
                    " WHERE id = %s AND migration_state = 'importing'",
                    (row,),
                )

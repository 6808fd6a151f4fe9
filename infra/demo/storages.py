"""The demo's third act: `missing_records` walks two virtual storages and adds the records that Praefect lacks."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from infra.demo import repositories
from infra.demo.stage import Line, ProofFailed, Stage, count

_MIGRATION: Final = "missing_records"
_REPOSITORIES: Final = {"default": 60, "archive": 40}
_RECORD: Final = """
WITH made AS (
    INSERT INTO repositories (virtual_storage, relative_path, generation, "primary", replica_path)
    VALUES (%s, %s, 7, %s, %s) RETURNING virtual_storage, relative_path, repository_id)
INSERT INTO storage_repositories (virtual_storage, relative_path, storage, generation, repository_id)
SELECT virtual_storage, relative_path, %s, 7, repository_id FROM made
"""
_OLD: Final = "SELECT md5(string_agg(r::text, ',' ORDER BY repository_id)) FROM repositories r WHERE generation = 7"
_NEW: Final = """
SELECT count(*) FROM repositories r JOIN storage_repositories s USING (repository_id)
WHERE r.generation = 0 AND s.generation = 0 AND s.storage = %s AND r.virtual_storage = %s
AND r.replica_path = r.relative_path
"""


class Storages:
    """Two virtual storages with real repositories, some without a record, and a secondary that is ignored."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._dsn, self._sql = stage.database("praefect")
        self._root = stage.place / "storages"
        self._missing = dict.fromkeys(_REPOSITORIES, 0)

    @property
    def sections(self) -> dict[str, dict[str, Any]]:
        """See Act.sections."""
        return {
            "databases": {"praefect": {"dsn": self._dsn, "gitlab_schemas": ["praefect"]}},
            "virtual_storages": {
                name: {
                    "database": "praefect",
                    "primary": f"{name}-primary",
                    "storages": {node: {"path": str(self._root / node)} for node in self._nodes(name)},
                }
                for name in _REPOSITORIES
            },
        }

    def play(self) -> list[Line]:
        """See Act.play."""
        stage = self._stage
        with stage.console.status("creating git repositories in two virtual storages"):
            self._sql.execute(files("infra.demo").joinpath("praefect.sql").read_bytes())
            for name, number in _REPOSITORIES.items():
                self._make(name, number)
        before = self._sql.execute(_OLD).fetchone()
        with stage.console.status("walking the storages"), stage.timed(f"{_MIGRATION}: two virtual storages walked"):
            member = stage.start("consume", _MIGRATION)
            for name in _REPOSITORIES:
                stage.command("produce", name)
            for _ in stage.patiently(_MIGRATION, member):
                imported = "SELECT count(*) FROM virtual_storages WHERE repositories_imported"
                if count(self._sql, imported) == len(_REPOSITORIES):
                    break
        stage.command("verify", _MIGRATION)
        stage.end(member)
        recorded = {name: count(self._sql, _NEW, f"{name}-primary", name) for name in _REPOSITORIES}
        total = count(self._sql, "SELECT count(*) FROM repositories")
        if recorded != self._missing or total != sum(_REPOSITORIES.values()):
            raise ProofFailed(f"{_MIGRATION}: {recorded} records were added, expected {self._missing}; {total} in all")
        if self._sql.execute(_OLD).fetchone() != before:
            raise ProofFailed(f"{_MIGRATION}: existing records were changed")
        found, new = sum(_REPOSITORIES.values()), sum(recorded.values())
        return [
            (
                _MIGRATION,
                f"{found} repositories found in {len(_REPOSITORIES)} virtual storages, {new} recorded,"
                f" the records of the other {found - new} untouched, those on secondaries ignored",
            )
        ]

    @staticmethod
    def _nodes(name: str) -> tuple[str, str]:
        return f"{name}-primary", f"{name}-secondary"

    def _make(self, name: str, number: int) -> None:
        primary, secondary = self._nodes(name)
        paths = [_hashed(name, project) for project in range(number)]
        # One more on the secondary, which an importer must ignore.
        only_there = self._root / secondary / _hashed(name, number)
        repositories.make([*(self._root / primary / path for path in paths), only_there])
        for project, path in enumerate(paths):
            if project % 3 == 0:
                self._sql.execute(_RECORD, (name, str(path), primary, f"@cluster/repositories/{path.name}", primary))
            else:
                self._missing[name] += 1


def _hashed(name: str, project: int) -> Path:
    digest = hashlib.sha256(f"{name} {project}".encode()).hexdigest()
    return Path("@hashed", digest[:2], digest[2:4], f"{digest}.git")

"""The demo's fourth act: `rehash_moves` moves real git repositories between nodes, with a consumer killed half-way."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from infra.demo import repositories
from infra.demo.stage import Line, ProofFailed, Stage, count

_MIGRATION: Final = "rehash_moves"
_REPOSITORIES: Final = 200
_NODES: Final = ("gitserver-0:3178", "gitserver-1:3178", "gitserver-2:3178")
_TABLES: Final = ["public.repo", "public.gitserver_repos"]

_ADD: Final = """
WITH made AS (INSERT INTO repo (name) VALUES (%s) RETURNING id)
INSERT INTO gitserver_repos (repo_id, clone_status, shard_id) SELECT id, 'cloned', %s FROM made
"""
_SETTLED: Final = "SELECT count(*) FROM headrace.rehash_moves WHERE state IN ('settled', 'failed')"
_SHARDS: Final = "SELECT name::text, shard_id FROM repo JOIN gitserver_repos ON repo_id = id"


class Gitservers:
    """Repositories on three nodes, each moved from its md5 home to its rendezvous home."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._dsn, self._sql = stage.database("sourcegraph")
        self._root = stage.place / "gitservers"
        self._names = [f"github.com/group-{number % 20}/project-{number}" for number in range(_REPOSITORIES)]

    @property
    def sections(self) -> dict[str, dict[str, Any]]:
        """See Act.sections."""
        return {
            "databases": {"sourcegraph": {"dsn": self._dsn, "gitlab_schemas": ["gitserver"], "tables": _TABLES}},
            "gitserver": {
                "nodes": list(_NODES),
                "roots": {node: str(self._directory(node)) for node in _NODES},
                "wrong_shard_deletion": "off",
                "refresh_seconds": 0.5,
                "grace_seconds": 2,
            },
        }

    def play(self) -> list[Line]:
        """See Act.play."""
        stage = self._stage
        with stage.console.status(f"making {_REPOSITORIES} git repositories on {len(_NODES)} gitserver nodes"):
            old, new = self._placed("md5"), self._placed("rendezvous")
            self._sql.execute(files("infra.demo").joinpath("gitserver.sql").read_bytes())
            repositories.make(self._path(old[name], name) for name in self._names)
            for name in self._names:
                self._sql.execute(_ADD, (name, old[name]))
            before = {name: repositories.refs(self._path(old[name], name)) for name in self._names}
        with stage.console.status("moving repositories"), stage.timed(f"{_MIGRATION}: every repository moved"):
            killed_at = self._move()
        with stage.console.status("checking every repository"):
            self._prove(new, before)
        moved = sum(old[name] != new[name] for name in self._names)
        return [
            (
                _MIGRATION,
                f"{_REPOSITORIES} repositories on {len(_NODES)} nodes, {moved} moved from md5 to rendezvous homes,"
                f" one of two consumers killed after {killed_at}",
            ),
            ("git", "one copy of each, on the node of `headrace place`; all refs unchanged; git fsck finds no errors"),
        ]

    def _placed(self, algorithm: str) -> dict[str, str]:
        """Return name → node, from `headrace place`."""
        words = ("place", "--nodes", ",".join(_NODES), "--algorithm", algorithm)
        lines = self._stage.filter(*words, text="\n".join(self._names) + "\n").splitlines()
        return dict(line.split("\t") for line in lines)

    def _move(self) -> int:
        """Run a producer and two consumers, kill one half-way; return the number of moves until then."""
        stage = self._stage
        producer = stage.start("produce", "sourcegraph")
        members = [stage.start("consume", _MIGRATION), stage.start("consume", _MIGRATION)]
        killed_at = 0
        for _ in stage.patiently(_MIGRATION, producer, *members):
            if self._sql.execute("SELECT to_regclass('headrace.rehash_moves')").fetchone() == (None,):
                continue
            settled = count(self._sql, _SETTLED)
            if len(members) == 2 and settled >= _REPOSITORIES / 3:
                killed_at = settled
                stage.kill(members.pop())
            if settled == _REPOSITORIES and len(members) == 1:
                break
        stage.command("verify", _MIGRATION)
        stage.end(*members, producer)
        return killed_at

    def _prove(self, new: dict[str, str], before: dict[str, str]) -> None:
        broken = []
        for name in self._names:
            copies = [node for node in _NODES if self._path(node, name).exists()]
            if copies != [new[name]]:
                broken.append(f"{name} is on {', '.join(copies) or 'no node'}, not on {new[name]}")
                continue
            path = self._path(new[name], name)
            if repositories.refs(path) != before[name] or not repositories.is_sound(path):
                broken.append(f"{name} changed")
        if dict(self._sql.execute(_SHARDS).fetchall()) != new:
            broken.append("the application's shard_id does not match the repositories' nodes")
        left = [path for node in _NODES for path in (self._directory(node) / ".headrace").glob("*/*")]
        broken += [f"{path} was left behind" for path in left]
        if broken:
            raise ProofFailed(f"{_MIGRATION}: {'; '.join(broken[:5])}")

    def _directory(self, node: str) -> Path:
        return self._root / node.partition(":")[0]

    def _path(self, node: str, name: str) -> Path:
        return self._directory(node) / name / ".git"

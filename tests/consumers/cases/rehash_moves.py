"""Repositories at their md5 homes: some have another home by rendezvous hashing, some are not cloned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg

from consumers.routing.placement import md5_home, rendezvous_home
from consumers.testing import case
from infra.settings.model import Settings
from tests.consumers.gitservers import NODES, TABLES, Application, Disks, make_repository, shards

_NAMES = [name for number in range(40) if (name := f"github.com/team/repository-{number}")]
MOVING = [name for name in _NAMES if md5_home(name, NODES) != rendezvous_home(name, NODES)][:8]
NOT_CLONED = [f"github.com/team/empty-{number}" for number in range(4)]


class Case(case.Case):
    """See case.Case."""

    @classmethod
    def surroundings(cls, settings: Settings, directory: Path) -> Settings:
        gitserver = Disks(directory / "disks").settings()
        return settings.model_copy(update={"gitserver": type(settings.gitserver).model_validate(gitserver)})

    def __init__(self, settings: Settings, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        connection.execute(TABLES)
        self._disks = Disks(Path(settings.gitserver.roots[NODES[0]]).parent)
        self._application = Application(settings, connection, database="here")

    def insert(self) -> None:
        for name in MOVING:
            for place in self._disks.copies(name):
                place.rename(place.with_name("removed"))
            make_repository(self._disks.old(name))
        self._application.add({name: md5_home(name, NODES) for name in MOVING})
        self._application.add({name: md5_home(name, NODES) for name in NOT_CLONED}, status="not_cloned")

    def publish(self) -> None:
        self._application.publish()

    def publish_as(self, xid: int) -> bool:
        self._application.xid = xid
        return True

    def wanted(self) -> case.Rows:
        return {name: rendezvous_home(name, NODES) for name in MOVING}

    def rows(self) -> case.Rows:
        return shards(self._connection)  # type: ignore[return-value]

    def writes(self) -> int:
        found = self._connection.execute(
            "SELECT count(*) FROM shard_writes WHERE application LIKE 'headrace consume%'"
        ).fetchone()
        assert found is not None
        return int(found[0])

    def settle_elsewhere(self) -> None:
        self._connection.execute("UPDATE gitserver_repos SET clone_status = 'not_cloned'")

    def recreate(self) -> None:
        gone = [key for (key,) in self._connection.execute("SELECT id FROM repo")]
        self._connection.execute("DELETE FROM repo")
        self._application.publish_deleted(gone)
        self.insert()
        self.publish()

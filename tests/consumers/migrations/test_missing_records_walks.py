"""Seed 000 from the directories on disk to the records: real walks, Kafka and consumers."""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from consumers.dead_letters.row_keys import RowKeys
from consumers.delivery.dead_letter_topic import read_dead_letters_topic
from consumers.operations.catalog import configured
from consumers.operations.status import gather
from consumers.runtime.assembly import consumer_of
from consumers.runtime.totals import Totals
from infra.kafka import topics
from infra.settings.model import Settings
from infra.stack import Stack
from producers.walk.directory import StorageUnreadable
from producers.walk.run import WalkIncomplete, WalksFailed, storage_walk_topic, walk
from tests.administering import whole_script
from tests.chaos import missing_records as chaos
from tests.conftest import Database
from tests.consumers.praefect_database import SCHEMAS, checksum, flags, hosts, records, track
from tests.producers.storages import drop_rights, hashed, regain_rights, repository, without_rights

pytestmark = pytest.mark.stack


@dataclass
class Cluster:
    """Virtual storages of two Gitaly nodes each, their database, and the topics."""

    bootstrap_servers: str
    prefix: str
    database: Database
    directory: Path
    names: list[str] = field(default_factory=lambda: ["default"])
    role: str | None = None
    """The role that works, if it is not the test's own."""

    def __post_init__(self) -> None:
        self.connection: psycopg.Connection[Any] = self.database.connect()
        self.connection.execute(SCHEMAS["new"])

    @property
    def settings(self) -> Settings:
        virtual_storages = {
            name: {
                "database": "praefect",
                "primary": "gitaly-0",
                "storages": {node: {"path": str(self.storage(name, node))} for node in ("gitaly-0", "gitaly-1")},
            }
            for name in self.names
        }
        other = {"user": self.role, "password": "sesame"} if self.role else {}
        dsn = make_conninfo(self.database.dsn, **other)
        return Settings(
            prefix=self.prefix,
            kafka={"bootstrap_servers": self.bootstrap_servers, "partitions": 3},  # type: ignore[arg-type]
            databases={"praefect": {"dsn": dsn, "gitlab_schemas": ["praefect"]}},  # type: ignore[dict-item]
            virtual_storages=virtual_storages,  # type: ignore[arg-type]
        )

    def storage(self, name: str = "default", node: str = "gitaly-0") -> Path:
        return self.directory / name / node

    def host(self, *paths: str | bytes, name: str = "default", node: str = "gitaly-0") -> None:
        for path in paths:
            repository(self.storage(name, node), path)

    def walk(self, name: str = "default", *, all_storages: bool = False) -> None:
        walk(self.settings, name, threading.Event(), all_storages=all_storages)

    def consume(self) -> Totals:
        settings = self.settings
        member = consumer_of(
            settings,
            configured(settings, "missing_records"),
            "praefect",
            stopping=threading.Event(),
            until_caught_up=True,
        )
        return member.run()

    def status(self) -> dict[str, Any]:
        (found,) = [each for each in gather(self.settings)["migrations"] if each["name"] == "missing_records"]
        return dict(found)


@pytest.fixture
def cluster(bootstrap_servers: str, prefix: str, database: Database, tmp_path: Path) -> Cluster:
    return Cluster(bootstrap_servers, prefix, database, tmp_path)


PATHS = [hashed(project) for project in range(20)]


def test_importer_walks_the_primary_storage_of_each_virtual_storage(cluster: Cluster) -> None:
    cluster.names = ["default", "other"]
    track(cluster.connection, PATHS[:5])
    before = checksum(cluster.connection, PATHS[:5])
    for name in cluster.names:
        cluster.host(*PATHS, "@pools/aa/bb/c.git", name=name)
        cluster.host("only-on-the-secondary.git", PATHS[0], name=name, node="gitaly-1")
        cluster.walk(name, all_storages=True)
    assert cluster.consume().applied == 16 + 21 + 2
    for name in cluster.names:
        assert records(cluster.connection, name).keys() == {*PATHS, "@pools/aa/bb/c.git"}
        assert {host for hosted in hosts(cluster.connection, name).values() for host in hosted} <= {
            "gitaly-0",
            *(["gitaly-1"] if name == "default" else []),
        }
    assert checksum(cluster.connection, PATHS[:5]) == before
    assert flags(cluster.connection) == {"default": True, "other": True}
    assert (cluster.status()["state"], cluster.status()["remaining"]) == ("complete", 0)
    # From now on a consumer ends at once.
    assert cluster.consume().events == 0


def test_documented_privileges_suffice(cluster: Cluster) -> None:
    document = (Path(__file__).parents[3] / "docs" / "how-to" / "storage-walks.md").read_text()
    role = f"importer_{cluster.prefix}"
    cluster.connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'sesame'")
    try:
        cluster.role = role
        script = whole_script(cluster.settings)
        cluster.connection.execute(script.partition("-- Kafka")[0].encode())
        grants = document.rpartition("```sql")[2].partition("```")[0]
        assert grants.count("TO headrace;") == 1
        cluster.connection.execute(grants.replace("TO headrace;", f"TO {role};").encode())
        cluster.host(*PATHS)
        cluster.walk()
        assert cluster.consume().applied == 21
        assert cluster.status()["remaining"] == 0
    finally:
        cluster.connection.execute(f"DROP OWNED BY {role}")
        cluster.connection.execute(f"DROP ROLE {role}")


def test_one_failing_storage_does_not_stop_another(cluster: Cluster) -> None:
    cluster.names = ["default", "other"]
    cluster.host(*PATHS, name="other")
    with pytest.raises(StorageUnreadable):
        cluster.walk("default")
    cluster.walk("other")
    assert cluster.consume().applied == 21
    assert (flags(cluster.connection), cluster.status()["remaining"]) == ({"other": True}, 1)
    assert cluster.status()["state"] == "caught_up"
    cluster.host(*PATHS)
    cluster.walk("default")
    assert cluster.consume().applied == 21
    assert (flags(cluster.connection), cluster.status()["state"]) == ({"default": True, "other": True}, "complete")


@pytest.mark.parametrize("names", [["default"], []])
def test_migration_is_not_complete_before_the_first_walk(cluster: Cluster, names: list[str]) -> None:
    topics.ensure_topic(cluster.settings.kafka, storage_walk_topic(cluster.settings))
    cluster.names = names
    cluster.consume()
    assert cluster.status()["state"] != "complete"


def test_failing_secondary_does_not_block_the_import(cluster: Cluster) -> None:
    cluster.host(*PATHS)
    with pytest.raises(WalksFailed):
        cluster.walk(all_storages=True)
    assert cluster.consume().applied == 21
    assert (flags(cluster.connection), cluster.status()["state"]) == ({"default": True}, "complete")


def test_walk_with_unreadable_directory_is_repeated_until_readable(
    bootstrap_servers: str, prefix: str, database: Database
) -> None:
    with without_rights() as directory:
        cluster = Cluster(bootstrap_servers, prefix, database, directory)
        cluster.host("a.git", "closed/b.git")
        closed = cluster.storage() / "closed"
        closed.chmod(0)
        drop_rights()
        with pytest.raises(WalkIncomplete):
            cluster.walk()
        regain_rights()
        assert cluster.consume().applied == 1
        assert flags(cluster.connection) == {}
        closed.chmod(0o755)
        cluster.walk()
        assert cluster.consume().applied == 2
    assert flags(cluster.connection) == {"default": True}
    assert records(cluster.connection).keys() == {"a.git", "closed/b.git"}


def test_empty_mount_point_is_not_imported(cluster: Cluster) -> None:
    cluster.storage().mkdir(parents=True)
    with pytest.raises(StorageUnreadable, match="it may not be a storage; check that it is mounted"):
        cluster.walk()
    cluster.host(*PATHS)
    cluster.walk()
    shutil.rmtree(cluster.storage())
    cluster.storage().mkdir()
    with pytest.raises(StorageUnreadable):
        cluster.walk()
    # The previous walk was complete, and its repositories are still in the topic.
    assert cluster.consume().applied == 21


def test_unrecordable_names_become_dead_letters_and_block_the_flag(cluster: Cluster) -> None:
    # 2,800 incompressible bytes: the limit of an index is 2,704.
    deep = "/".join(hashed(project).rpartition("/")[2] for project in range(1000, 1041)) + "/a.git"
    cluster.host(*PATHS, b"\xff\xfe.git", deep, 'it\'s "quoted"\nand more.git')
    cluster.walk()
    assert cluster.consume().applied == 21
    keys = RowKeys(cluster.settings)
    dead_letters = {
        keys.columns(entry.key)["relative_path"]: entry.reason
        for entry in read_dead_letters_topic(cluster.settings, "missing_records")
    }
    assert dead_letters == {
        "/\\xff\\xfe.git": "the repository's path is not valid text in the database",
        deep: "54000 ProgramLimitExceeded constraint repository_lookup_index table repositories",
    }
    assert flags(cluster.connection) == {}
    shutil.rmtree(cluster.storage() / deep.partition("/")[0])
    shutil.rmtree(bytes(cluster.storage()) + b"/\xff\xfe.git")
    cluster.walk()
    assert cluster.consume().applied == 1
    assert flags(cluster.connection) == {"default": True}


@pytest.mark.long
def test_two_walks_and_two_consumers_record_every_missing_repository_once(stack: Stack, tmp_path: Path) -> None:
    # A killed consumer keeps its partitions for ten seconds: python -m tests.chaos.missing_records kills it.
    chaos.play(stack, tmp_path, 400, "new", lambda *_: None, end=Popen.terminate)

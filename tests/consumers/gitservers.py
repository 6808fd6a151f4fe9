"""Gitservers: the application's two tables with their events, and real bare repositories in a root for each node."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import psycopg

from consumers.repositories.storage import OWN, Root
from consumers.routing.placement import md5_home, normalised, rendezvous_home
from consumers.testing.settling import until_shown
from infra.kafka import clients, topics
from infra.schema_registry.topic_registry import open_registry
from infra.settings.model import Settings
from infra.state.positions import SnapshotState, record_key
from schemas.avro import key_schema, value_schema
from schemas.codec.encoder import Encoder
from schemas.events import Column, Op, Origin, Relation
from schemas.positions import Lsn
from schemas.topics import positions_topic, table_topic

NODES = ("gitserver-0:3178", "gitserver-1:3178", "gitserver-2:3178")

TABLES = (
    files("infra.demo").joinpath("gitserver.sql").read_text(encoding="utf-8")
    + """
    CREATE TABLE public.shard_writes (
        sequence bigint GENERATED ALWAYS AS IDENTITY, repo_id integer, old text, new text, application text
    );
    CREATE FUNCTION public.log_shard() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO public.shard_writes (repo_id, old, new, application)
            VALUES (NEW.repo_id, OLD.shard_id, NEW.shard_id, current_setting('application_name'));
            RETURN NEW;
        END $$;
    CREATE TRIGGER log_shard AFTER UPDATE ON public.gitserver_repos
        FOR EACH ROW EXECUTE FUNCTION public.log_shard();
"""
)


def make_tables(connection: psycopg.Connection[Any]) -> None:
    """Create the application's tables, empty."""
    connection.execute(TABLES)


_INT4, _TEXT, _INT8 = 23, 25, 20
REPO = Relation(
    oid=16_600,
    schema="public",
    table="repo",
    replica_identity="d",
    columns=(Column("id", _INT4), Column("name", _TEXT)),
    identity_columns=("id",),
)
GITSERVER_REPOS = Relation(
    oid=16_601,
    schema="public",
    table="gitserver_repos",
    replica_identity="d",
    columns=(
        Column("repo_id", _INT4),
        Column("clone_status", _TEXT),
        Column("last_external_service", _INT8),
        Column("shard_id", _TEXT),
        Column("last_error", _TEXT),
    ),
    identity_columns=("repo_id",),
)


@dataclass(frozen=True)
class Disks:
    """A root for each node, below one directory."""

    directory: Path
    nodes: tuple[str, ...] = NODES

    def __post_init__(self) -> None:
        for node in self.nodes:
            self.path(node).mkdir(parents=True, exist_ok=True)

    def path(self, node: str) -> Path:
        return self.directory / node.partition(":")[0]

    def settings(self, **more: Any) -> dict[str, Any]:
        """Return their `[gitserver]` section, with grace and refresh as short as a test allows."""
        roots = {node: str(self.path(node)) for node in self.nodes}
        return {
            "nodes": list(self.nodes),
            "refresh_seconds": 0.05,
            "grace_seconds": 0.2,
            "roots": roots,
            "wrong_shard_deletion": "off",
            **more,
        }

    def place(self, node: str, name: str) -> Path:
        """Return the path of a repository on a node."""
        return Root(self.path(node)).place(normalised(name))

    def old(self, name: str) -> Path:
        return self.place(md5_home(name, self.nodes), name)

    def new(self, name: str) -> Path:
        return self.place(rendezvous_home(name, self.nodes), name)

    def copies(self, name: str) -> list[Path]:
        """Return all places that have a repository, complete or not."""
        return [place for node in self.nodes if (place := self.place(node, name)).exists()]

    def leftovers(self) -> list[Path]:
        """Return all files in headrace's own directories."""
        return [path for node in self.nodes for path in (self.path(node) / OWN).glob("*/*")]


def git(at: Path, *arguments: str, given: bytes = b"", check: bool = True) -> str:
    """Run git in a bare repository, as an application would; return what it printed."""
    done = subprocess.run(
        ["git", f"--git-dir={at}", *arguments],
        input=given,
        capture_output=True,
        check=False,
        env={**os.environ, "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull},
    )
    if check:
        assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def make_repository(
    place: Path, *, commits: int = 1, branches: Sequence[str] = ("main",), object_format: str = "sha1"
) -> None:
    """Create a bare repository with its own history."""
    place.mkdir(parents=True)
    git(
        place,
        "init",
        "--quiet",
        "--bare",
        "--template=",
        "--initial-branch=main",
        f"--object-format={object_format}",
        str(place),
    )
    stream = b"".join(
        commit_stream(f"refs/heads/{branch}", number, f"{place}{branch}{number}", parent=False)
        for branch in branches
        for number in range(commits)
    )
    git(place, "fast-import", "--quiet", given=stream)


def push(place: Path, branch: str, text: str) -> str:
    """Add a commit to a branch, as a push would; return its id."""
    ref = f"refs/heads/{branch}"
    known = git(place, "rev-parse", "--verify", "--quiet", ref, check=False) != ""
    git(place, "fast-import", "--quiet", given=commit_stream(ref, 9, text, parent=known))
    return git(place, "rev-parse", ref)


def refs(place: Path) -> dict[str, str]:
    """Return a repository's refs, HEAD among them."""
    lines = git(place, "for-each-ref", "--format=%(refname) %(objectname)").splitlines()
    found = dict(line.split(" ") for line in lines)
    return {**found, "HEAD": git(place, "symbolic-ref", "HEAD")}


def is_whole(place: Path) -> bool:
    """Return whether git finds nothing wrong with a repository."""
    done = subprocess.run(["git", f"--git-dir={place}", "fsck", "--strict"], capture_output=True, check=False)
    return done.returncode == 0


def clone_template(template: Path, place: Path, text: str) -> None:
    """Create a repository quickly: a copy of another one, with its own commit."""
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(template, place)
    push(place, "main", text)


def commit_stream(ref: str, number: int, text: str, *, parent: bool) -> bytes:
    """Return a commit as git fast-import reads it."""
    content = f"{text}\n".encode()
    lines = [
        b"commit " + ref.encode(),
        b"committer T <t@example.org> %d +0000" % (1_700_000_000 + number),
        b"data 1",
        b"x",
        *([b"from " + ref.encode() + b"^0"] if parent else []),
        b"M 644 inline file",
        b"data %d" % len(content),
        content,
    ]
    return b"\n".join(lines) + b"\n"


def add_rows(connection: psycopg.Connection[Any], shards: Mapping[str, str], *, status: str = "cloned") -> list[int]:
    """Insert the application's rows of repositories, name → shard; return their ids."""
    ids = []
    for name, shard in shards.items():
        row = connection.execute("INSERT INTO repo (name) VALUES (%s) RETURNING id", (name,)).fetchone()
        assert row is not None
        ids.append(int(row[0]))
        connection.execute(
            "INSERT INTO gitserver_repos (repo_id, clone_status, shard_id) VALUES (%s, %s, %s)", (row[0], status, shard)
        )
    return ids


def shards(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """Return name → shard recorded by the application."""
    found = connection.execute("SELECT r.name, g.shard_id FROM repo r JOIN gitserver_repos g ON g.repo_id = r.id")
    return dict(found.fetchall())


class Application:
    """The application's rows, and their events as a producer would write them."""

    def __init__(self, settings: Settings, connection: psycopg.Connection[Any], *, database: str = "main") -> None:
        self._settings = settings
        self.connection = connection
        self.xid = 7
        self._lsn = 1_000
        registry = open_registry(settings)
        self._encoders = {}
        for relation, key in ((REPO, "id"), (GITSERVER_REPOS, "repo_id")):
            topic = table_topic(settings.prefix, "gitserver", database, "public", relation.table)
            topics.ensure_topic(settings.kafka, topic, partitions=2)
            encoder = Encoder(
                relation,
                "gitserver",
                (key,),
                origin=Origin(database, database),
                value_schema_id=registry.register(f"{topic}-value", value_schema(relation, "gitserver")),
                key_schema_id=registry.register(f"{topic}-key", key_schema(relation, "gitserver", (key,))),
            )
            self._encoders[relation.table] = (topic, encoder)

    def add(self, shards: Mapping[str, str], *, status: str = "cloned") -> list[int]:
        """Insert repositories, name → shard, and return their ids; no events yet."""
        return add_rows(self.connection, shards, status=status)

    def publish(self, keys: Iterable[int] | None = None, *, op: Op = Op.READ) -> None:
        """Produce events of rows as they are now; of all by default."""
        chosen = None if keys is None else list(keys)
        rows = self.connection.execute(
            "SELECT r.id, r.name, g.clone_status, g.shard_id FROM repo r JOIN gitserver_repos g ON g.repo_id = r.id"
            " WHERE %s::int[] IS NULL OR r.id = ANY(%s) ORDER BY r.id",
            (chosen, chosen),
        ).fetchall()
        records = []
        for key, name, status, shard in rows:
            number = b"%d" % key
            records.append(self._record("repo", op, [number, name.encode()]))
            records.append(self._record("gitserver_repos", op, [number, status.encode(), None, shard.encode(), None]))
        self._send(records)

    def snapshot_done(self) -> None:
        """Record that the snapshot of the tables is complete, as a producer does."""
        topic = positions_topic(self._settings.prefix)
        topics.ensure_topic(self._settings.kafka, topic, partitions=1)
        producer = clients.producer(self._settings.kafka)
        for table, (of, _) in self._encoders.items():
            name = f"public.{table}"
            state = SnapshotState(source="main", table=name, topic=of, done=True, chunks_done=1, chunks=1)
            producer.produce(topic, key=record_key("main", name), value=state.model_dump_json())
        assert producer.flush(120) == 0

    def publish_deleted(self, keys: Iterable[int]) -> None:
        """Produce the events of deleted rows."""
        records: list[tuple[str, bytes, bytes | None]] = []
        for key in keys:
            for table, width in (("gitserver_repos", 5), ("repo", 2)):
                topic, encoder = self._encoders[table]
                self._lsn += 8
                prefix = encoder.event_prefix(Op.DELETE, lsn=Lsn(self._lsn), xid=self.xid, ts_ms=1_700_000_000_000)
                old: list[Any] = [b"%d" % key, *([None] * (width - 1))]
                record = encoder.delete(prefix, 0, 1_700_000_000_001, old)
                records += [(topic, *record), (topic, record[0], None)]
        self._send(records)

    def _record(self, table: str, op: Op, row: list[Any]) -> tuple[str, bytes, bytes]:
        topic, encoder = self._encoders[table]
        self._lsn += 8
        prefix = encoder.event_prefix(op, lsn=Lsn(self._lsn), xid=self.xid, ts_ms=1_700_000_000_000)
        return (topic, *encoder.change(prefix, 0, 1_700_000_000_001, row))

    def _send(self, records: Iterable[tuple[str, bytes, bytes | None]]) -> None:
        producer = clients.producer(self._settings.kafka, transactional_id=f"{self._settings.prefix}-gitservers")
        producer.init_transactions(120)
        producer.begin_transaction()
        for topic, key, value in records:
            producer.produce(topic, key=key, value=value)
        producer.commit_transaction(120)
        until_shown(self._settings.kafka, *(topic for topic, _ in self._encoders.values()))

"""A source's topics belong to the registry that gave their ids: another one is refused, on real servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from consumers.testing.waiting import PATIENCE
from infra.schema_registry.registry_identity import RegistryChanged
from infra.settings.registry_settings import RegistrySettings
from infra.state.snapshot_requests import SnapshotRequest
from producers.session.resnapshot_request import ask
from producers.session.start_over import start_over
from tests.consumers import container_repositories
from tests.infra.schema_registry.registry_server import RegistryServer, registry_server
from tests.producers.processes import ROOT, write_settings
from tests.producers.sources import Running, Source, copy_all, running, topic_of

pytestmark = pytest.mark.stack

NewSource = Callable[..., Source]
TABLE = "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 1), (2, 2)"


@pytest.fixture
def first() -> Iterator[RegistryServer]:
    with registry_server() as server:
        yield server


@pytest.fixture
def second() -> Iterator[RegistryServer]:
    with registry_server() as server:
        server.schemas.append(json.dumps("string"))
        yield server


def at(source: Source, url: str) -> None:
    source.settings = source.settings.model_copy(update={"registry": RegistrySettings(url=url)})


def refused(source: Source, words: str) -> None:
    with pytest.raises(RegistryChanged, match=words) as caught:
        raise Running(source).ended() or AssertionError("it started")
    assert caught.value.exit_code == 3


def ids(source: Source) -> set[int]:
    return set(source.recorded().snapshots["public.t"].registered)


def checked(source: Source, config: Path) -> tuple[int, str]:
    return ran(source, config, "check", "main")


def ran(source: Source, config: Path, *words: str) -> tuple[int, str]:
    ended = subprocess.run(
        [sys.executable, "-m", "headrace", *words, "--config", str(write_settings(source.settings, config))],
        cwd=ROOT,
        env={**os.environ, "HEADRACE_REGISTRY__URL": source.settings.registry.url},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


@pytest.mark.long
def test_changed_registry_is_refused_until_the_source_is_started_over(
    new_source: NewSource, first: RegistryServer, second: RegistryServer, tmp_path: Path
) -> None:
    source = new_source(TABLE, "public.t")
    topic, config = topic_of(source.settings, "public.t"), tmp_path / "headrace.toml"
    at(source, first.url)
    copy_all(source)
    assert ids(source) == {1, 2}
    assert checked(source, config)[0] == 0
    at(source, first.url.replace("127.0.0.1", "localhost"))
    source.connection.execute("INSERT INTO t VALUES (3, 3)")
    copy_all(source)
    source.require_equal("public.t")

    at(source, second.url)
    other = f"topic {topic} has records with schema id 1, which is another schema in the registry at {second.url}"
    refused(source, other)
    code, said = checked(source, config)
    assert code == 3, said
    assert f"registry: {other}" in said
    assert second.subjects == {}, "nothing was registered"

    start_over(source.settings, "main")
    copy_all(source)
    assert ids(source) == {2, 3, 4}, "of keys, of values, and of the truncate's key"
    assert checked(source, config)[0] == 0


def test_lost_registry_is_refused_and_a_restored_one_continues(new_source: NewSource, first: RegistryServer) -> None:
    source = new_source(TABLE, "public.t")
    at(source, first.url)
    copy_all(source)
    kept, subjects = list(first.schemas), dict(first.subjects)
    first.schemas, first.subjects = [], {}
    refused(source, "has records with schema id 1, which the registry at .* does not know")
    first.schemas, first.subjects = kept, subjects
    source.connection.execute("ALTER TABLE t ADD COLUMN m text; INSERT INTO t VALUES (4, 4, 'x')")
    copy_all(source)
    records = source.require_equal("public.t", ("id", "n"))
    events = [record.event for record in records if record.key == {"id": 4}]
    assert [event.after for event in events if event is not None] == [{"id": 4, "n": 4, "m": "x"}]
    assert ids(source) == {1, 2, 3}


def test_change_from_the_schemas_topic_to_a_registry_is_refused(new_source: NewSource, first: RegistryServer) -> None:
    source = new_source(TABLE, "public.t")
    copy_all(source)
    at(source, first.url)
    refused(source, "which the registry at .* does not know")
    at(source, "")
    copy_all(source)


def test_table_whose_registry_lost_its_ids_is_resnapshotted_from_scratch(
    new_source: NewSource, first: RegistryServer
) -> None:
    source = new_source(TABLE, "public.t")
    at(source, first.url)
    copy_all(source)
    first.schemas, first.subjects = [json.dumps("string")], {}
    said = ask(source.settings, "main", SnapshotRequest(table="public.t", from_scratch=True))
    assert "is re-snapshotted when the producer of main starts" in said
    with running(source) as producer:
        producer.caught_up()
    assert ids(source) == {2, 3, 4}, "of keys, of values, and of the truncate's key"


def test_consumer_refuses_a_registry_by_which_its_topics_were_not_written(
    new_source: NewSource, first: RegistryServer, second: RegistryServer, tmp_path: Path
) -> None:
    source = new_source(container_repositories.TABLE, "public.container_repositories")
    at(source, first.url)
    container_repositories.fill(source.connection, {1: container_repositories.TOO_MANY_TAGS})
    copy_all(source)
    at(source, second.url)
    for words in (["consume", "skip_resets", "--until-caught-up"], ["finalize", "skip_resets"]):
        code, said = ran(source, tmp_path / "headrace.toml", *words)
        assert code == 3, said
        assert f"schema id 1, which is another schema in the registry at {second.url}" in said
    at(source, first.url)
    code, said = ran(source, tmp_path / "headrace.toml", "finalize", "skip_resets")
    assert code == 0, said
    assert container_repositories.states(source.connection) == {1: container_repositories.DEFAULT}

"""Which recorded topics are compared with the registry, before anything is published to them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pytest

from infra.schema_registry import recorded_ids
from infra.schema_registry.registry_identity import RegistryChanged, fingerprint
from infra.settings.model import DatabaseSettings, Settings
from infra.settings.registry_settings import RegistrySettings
from infra.settings.storage_settings import StorageSettings, VirtualStorageSettings
from infra.state.positions import SnapshotState
from producers.publish.registry_check import changed_registry, require_same_registry
from tests.infra.schema_registry.registry_server import RegistryServer, registry_server

KNOWN = {1: fingerprint("string")}
LOST = {**KNOWN, 2: fingerprint("long")}


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with registry_server() as running:
        running.schemas.append('"string"')
        yield running


@pytest.fixture
def settings(server: RegistryServer, monkeypatch: pytest.MonkeyPatch) -> Settings:
    def filled(_: object, topics: Collection[str]) -> frozenset[str]:
        return frozenset(topics) - {"p.gitlab_main.empty"}

    def counts(_: object) -> dict[str, int]:
        return {f"p.gitlab_main.{name}": 4 for name in ("right", "empty", "emptied", "uncaptured", "lost", *"abc")} | {
            "p.praefect.storage_walk": 4
        }

    monkeypatch.setattr(recorded_ids, "with_records", filled)
    monkeypatch.setattr(recorded_ids, "partition_counts", counts)
    main = DatabaseSettings(dsn="postgresql://h/d", gitlab_schemas=("gitlab_main",), tables=("public.*",))  # type: ignore[arg-type]
    walked = VirtualStorageSettings(database="main", primary="a", storages={"a": StorageSettings(path="/a")})
    return Settings(
        registry=RegistrySettings(url=server.url), databases={"main": main}, virtual_storages={"default": walked}
    )


def recorded(name: str, registered: dict[int, str], *, source: str = "main", **more: bool) -> SnapshotState:
    topic = f"p.gitlab_main.{name.rpartition('.')[2]}"
    return SnapshotState.model_validate(
        {"source": source, "table": name, "topic": topic, "registered": registered, **more}
    )


def changed(settings: Settings, *states: SnapshotState, source: str = "main") -> list[str]:
    return [
        each.problem.split()[1] for each in changed_registry(settings, {source: {each.table: each for each in states}})
    ]


def test_only_current_topics_with_records_are_compared(settings: Settings) -> None:
    assert changed(
        settings,
        recorded("public.right", KNOWN),
        recorded("public.older", {}),
        recorded("public.empty", LOST),
        recorded("public.hidden", LOST),
        recorded("public.emptied", LOST, from_scratch=True),
        recorded("elsewhere.uncaptured", LOST),
        recorded("public.lost", LOST),
    ) == ["p.gitlab_main.lost"]
    assert changed(settings, recorded("public.lost", LOST), source="unknown") == []


def test_start_is_refused_with_the_first_topic_and_the_number_of_others(settings: Settings) -> None:
    states = {name: recorded(name, LOST) for name in ("public.a", "public.b", "public.c")}
    with pytest.raises(RegistryChanged, match=r"topic p\.gitlab_main\.a has .* know, as have 2 more topics; Set"):
        require_same_registry(settings, {"main": states})
    require_same_registry(settings, {"main": {"public.a": recorded("public.a", KNOWN)}})


def test_walks_share_a_topic_that_one_of_them_may_have_refilled(settings: Settings) -> None:
    def walk(storage: str, registered: dict[int, str]) -> SnapshotState:
        return recorded(storage, registered, source="default").model_copy(update={"topic": "p.praefect.storage_walk"})

    assert changed(settings, walk("a", LOST), walk("b", LOST), source="default") == ["p.praefect.storage_walk"]
    assert changed(settings, walk("a", LOST), walk("b", KNOWN), source="default") == []


def test_registry_without_recorded_ids_is_not_asked(settings: Settings, server: RegistryServer) -> None:
    assert changed(settings, recorded("public.older", {})) == []
    assert server.asked == []

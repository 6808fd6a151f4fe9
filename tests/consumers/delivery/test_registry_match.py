"""Which recorded topics a consumer compares with its registry."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pytest

from consumers.delivery import registry_match
from consumers.delivery.registry_match import require_registry_of
from infra.schema_registry import recorded_ids
from infra.schema_registry.registry_identity import RegistryChanged, fingerprint
from infra.settings.model import Settings
from infra.settings.registry_settings import RegistrySettings
from infra.state.positions import SnapshotState, SourceState
from tests.infra.schema_registry.registry_server import RegistryServer, registry_server

KNOWN = {1: fingerprint("string")}
LOST = {2: fingerprint("long")}
OTHER = {1: fingerprint("long")}


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with registry_server() as running:
        running.schemas.append('"string"')
        yield running


@pytest.fixture
def settings(server: RegistryServer, monkeypatch: pytest.MonkeyPatch) -> Settings:
    def filled(_: object, topics: Collection[str]) -> frozenset[str]:
        return frozenset(topics) - {"p.empty"}

    names = ("right", "moved", "empty", "emptied", "lost", "other")
    states = {
        "main": SourceState(snapshots={name: recorded(name, LOST) for name in ("empty", "lost", "moved")}),
        "ci": SourceState(
            snapshots={
                "right": recorded("right", KNOWN),
                "moved": recorded("moved", KNOWN),
                "emptied": recorded("emptied", LOST, from_scratch=True),
                "other": recorded("other", OTHER),
            }
        ),
    }
    monkeypatch.setattr(recorded_ids, "with_records", filled)
    monkeypatch.setattr(recorded_ids, "partition_counts", lambda _: {f"p.{name}": 4 for name in names})
    monkeypatch.setattr(registry_match, "read_sources", lambda _: states)
    return Settings(registry=RegistrySettings(url=server.url))


def recorded(name: str, registered: dict[int, str], **more: bool) -> SnapshotState:
    return SnapshotState.model_validate(
        {"source": "main", "table": name, "topic": f"p.{name}", "registered": registered, **more}
    )


def test_consumer_starts_with_the_registry_of_its_topics(settings: Settings, server: RegistryServer) -> None:
    require_registry_of(settings, ["p.right", "p.moved", "p.empty", "p.emptied", "p.unknown"])
    server.asked.clear()
    require_registry_of(settings, ["p.unknown"])
    assert server.asked == [], "nothing is on record for it"


@pytest.mark.parametrize(
    ("topic", "words"),
    [
        ("p.lost", "has records with schema id 2, which the registry at .* does not know"),
        ("p.other", "has records with schema id 1, which is another schema in the registry at"),
    ],
)
def test_another_registry_is_refused(settings: Settings, topic: str, words: str) -> None:
    with pytest.raises(RegistryChanged, match=f"topic {topic} {words}") as caught:
        require_registry_of(settings, ["p.right", topic])
    assert caught.value.exit_code == 3

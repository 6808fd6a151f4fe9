"""Compares the schema ids that sources' topics have with the registry's answers for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from infra.schema_registry import recorded_ids
from infra.schema_registry.registry_identity import RegistryChanged
from infra.settings.model import Settings
from infra.state.positions import SnapshotState, read_sources

Recorded = Mapping[str, Mapping[str, SnapshotState]]
"""Source → table or storage → its recorded state."""


def require_same_registry(settings: Settings, recorded: Recorded) -> None:
    """Raise RegistryChanged if an id in a source's topic is unknown to the registry, or is another schema's there.

    The error names the first such topic, and how many more there are.
    """
    recorded_ids.require_none(changed_registry(settings, recorded))


def require_same_registry_of_walks(settings: Settings) -> None:
    """Raise RegistryChanged likewise for the topic that all walks share."""
    sources = read_sources(settings)
    require_same_registry(
        settings, {name: state.snapshots for name, state in sources.items() if name in settings.virtual_storages}
    )


def changed_registry(settings: Settings, recorded: Recorded) -> Iterator[RegistryChanged]:
    """Yield an error for each topic of the sources' current tables, or storages, whose ids are not the registry's.

    A topic that is empty, or about to be emptied, may get other ids.
    """
    found: dict[str, list[Mapping[int, str]]] = {}
    for source, snapshots in recorded.items():
        for name, snapshot in snapshots.items():
            if snapshot.registered and not snapshot.from_scratch and _is_current(settings, source, name):
                found.setdefault(snapshot.topic, []).append(snapshot.registered)
    yield from recorded_ids.changed_registry(settings, found)


def _is_current(settings: Settings, source: str, name: str) -> bool:
    """Whether the settings still have the table, or the storage's virtual storage."""
    database = settings.databases.get(source)
    if database is None:
        return source in settings.virtual_storages
    return database.captures(name)

"""Compares the schema ids that sources' topics have with the registry's answers for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from infra.kafka.topics import partition_counts, with_records
from infra.schema_registry.registry_identity import RegistryChanged, changed_topics
from infra.schema_registry.topic_registry import open_registry
from infra.settings.model import Settings
from infra.state.positions import SnapshotState, read_sources

Recorded = Mapping[str, Mapping[str, SnapshotState]]
"""Source → table or storage → its recorded state."""


def require_same_registry(settings: Settings, recorded: Recorded) -> None:
    """Raise RegistryChanged if an id in a source's topic is unknown to the registry, or is another schema's there.

    The error names the first such topic, and how many more there are.
    """
    changed = list(changed_registry(settings, recorded))
    if changed:
        more = f", as have {len(changed) - 1} more topics" if len(changed) > 1 else ""
        raise RegistryChanged(f"{changed[0].problem}{more}", remedy=changed[0].remedy)


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
    if found:
        # A consumers' principal, which runs `headrace check` too, may not describe the topics of others.
        visible = found.keys() & partition_counts(settings.kafka).keys()
        filled = with_records(settings.kafka, visible)
        found = {topic: ids for topic, ids in found.items() if topic in filled}
    if found:
        yield from changed_topics(settings, open_registry(settings), found)


def _is_current(settings: Settings, source: str, name: str) -> bool:
    """Whether the settings still have the table, or the storage's virtual storage."""
    database = settings.databases.get(source)
    if database is None:
        return source in settings.virtual_storages
    return database.captures(name)

"""Refuses a registry that is not the one by which a migration's topics were written."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from infra.schema_registry import recorded_ids
from infra.settings.model import Settings
from infra.state.positions import read_sources


def require_registry_of(settings: Settings, topics: Collection[str]) -> None:
    """Raise RegistryChanged if a schema id of one of the topics is not the registry's, or is another schema there.

    The ids are those that producers recorded with their positions. A topic without records, or about to be emptied, may
    get other ids. Raises HeadraceError if Kafka or the registry does not answer.
    """
    found: dict[str, list[Mapping[int, str]]] = {}
    for source in read_sources(settings).values():
        for snapshot in source.snapshots.values():
            if snapshot.topic in topics and snapshot.registered and not snapshot.from_scratch:
                found.setdefault(snapshot.topic, []).append(snapshot.registered)
    recorded_ids.require_none(recorded_ids.changed_registry(settings, found))

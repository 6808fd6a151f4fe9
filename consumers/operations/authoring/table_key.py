"""Asks the databases of the settings for a table's key, so that its author does not have to."""

from __future__ import annotations

from consumers.contract.primary_key import primary_key
from consumers.operations import catalog
from infra.postgres import connect
from infra.settings.model import Settings
from schemas.errors import HeadraceError, UsageError


def key_in_database(settings: Settings, table: str, gitlab_schema: str) -> str | None:
    """Return the primary key of a table as COLUMN:TYPE, None if no database of the schema has one or responds.

    Raises UsageError if the key has several columns.
    """
    for name in catalog.listing(settings, gitlab_schema):
        try:
            with connect.session(settings.database(name), name="new migration") as connection:
                found = primary_key(connection, table)
        except HeadraceError:
            continue
        keys = [f"{column}:{key_type}" for column, key_type in found.items()]
        if len(keys) > 1:
            raise UsageError(
                f"the primary key of {table} has {len(found)} columns, {', '.join(found)}: these files have one",
                remedy=f"`headrace new backfill` takes any key; or give --key {keys[0]}, and edit the SQL",
            )
        if keys:
            return keys[0]
    return None

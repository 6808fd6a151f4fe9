"""Recognizes who operates a server by roles, settings and functions that only their servers have."""

from __future__ import annotations

from typing import Any, Final

import psycopg

from infra.settings.database_login import DatabaseLogin
from infra.settings.providers import PROVIDERS, SELF_MANAGED, Provider

_SIGNS: Final = """
SELECT ARRAY(SELECT r.rolname::text FROM pg_catalog.pg_roles r WHERE r.rolname = ANY (%(roles)s::text[])),
       ARRAY(SELECT s.name FROM pg_catalog.pg_settings s WHERE s.name = ANY (%(settings)s::text[])),
       ARRAY(SELECT p.proname::text FROM pg_catalog.pg_proc p WHERE p.proname = ANY (%(functions)s::text[]))
"""
"""The view hides settings that only a superuser may see, where current_setting() would raise an error."""


def provider_of(connection: psycopg.Connection[Any], login: DatabaseLogin) -> Provider:
    """Return the provider of the settings, else the one that the server shows to be."""
    if login.provider is not None:
        return PROVIDERS[login.provider]
    signs = {
        "roles": [role for each in PROVIDERS.values() for role in each.roles],
        "settings": [setting for each in PROVIDERS.values() for setting in each.settings],
        "functions": [function for each in PROVIDERS.values() for function in each.functions],
    }
    row = connection.execute(_SIGNS, signs).fetchone()
    assert row is not None
    roles, settings, functions = map(set, row)
    for each in PROVIDERS.values():
        if roles & {*each.roles} or settings & {*each.settings} or functions & {*each.functions}:
            return each
    return PROVIDERS[SELF_MANAGED]

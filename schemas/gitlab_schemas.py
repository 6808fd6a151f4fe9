"""Maps tables to gitlab schemas, the labels that determine which database owns a table.

The dictionary is gitlab_schemas.toml, part of the package; settings extend it (infra/settings/table_labels.py).
"""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Mapping
from importlib.resources import files
from typing import Final

from schemas.errors import Refused

PER_DATABASE: Final = frozenset(("gitlab_internal", "gitlab_shared", "gitlab_shared_cell_local", "gitlab_shared_org"))
"""The labels of tables that every database has separately, as in GitLab's db/database_connections."""

PRAEFECT: Final = "praefect"
"""The label of Praefect's tables and of the findings of storage walks."""

KNOWN: Final = frozenset(
    (
        "gitlab_ci",
        "gitlab_ci_cell_local",
        "gitlab_main",
        "gitlab_main_cell",
        "gitlab_main_cell_local",
        "gitlab_main_cell_setting",
        "gitlab_main_clusterwide",
        "gitlab_main_clusterwide_setting",
        "gitlab_main_jh",
        "gitlab_main_org",
        "gitlab_main_user",
        "gitlab_pm",
        "gitlab_sec",
        "gitlab_sec_cell_local",
        "gitserver",
        PRAEFECT,
        "registry",
        *PER_DATABASE,
    )
)
"""The labels of the known systems; settings may use others."""


class UnmappedTable(Refused):
    """Add the table with its gitlab schema under [databases.<name>.table_schemas] in the settings."""


def _dictionary() -> Mapping[str, tuple[str, ...]]:
    text = files("schemas").joinpath("gitlab_schemas.toml").read_text(encoding="utf-8")
    tables: defaultdict[str, tuple[str, ...]] = defaultdict(tuple)
    for gitlab_schema, entry in tomllib.loads(text).items():
        for table in entry["tables"]:
            tables[table] += (gitlab_schema,)
    return dict(tables)


TABLES: Final = _dictionary()
"""Qualified name, such as `public.projects` → the gitlab schemas with such a table."""

"""Maps tables to gitlab schemas, the labels that determine which database owns a table.

The dictionary is gitlab_schemas.toml, part of the package; settings extend it.
"""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Final

from schemas.errors import Refused

GITLAB_SHARED: Final = "gitlab_shared"
"""The label of tables that every database has separately."""

PRAEFECT: Final = "praefect"
"""The label of Praefect's tables and of the findings of storage walks."""

KNOWN: Final = frozenset(
    (
        "gitlab_ci",
        "gitlab_ci_cell_local",
        "gitlab_internal",
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
        GITLAB_SHARED,
        "gitlab_shared_cell_local",
        "gitlab_shared_org",
        "gitserver",
        PRAEFECT,
        "registry",
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


def gitlab_schema_of(qualified_name: str, allowed: Sequence[str], extra: Mapping[str, str]) -> str:
    """Return the gitlab schema of a table of a database whose `gitlab_schemas` are `allowed`.

    `extra` is that database's `table_schemas` in the settings and overrides the dictionary. Raises UnmappedTable if
    neither has the table, or if not exactly one of the dictionary's schemas is allowed.
    """
    if qualified_name in extra:
        return extra[qualified_name]
    known = TABLES.get(qualified_name, ())
    fitting = [gitlab_schema for gitlab_schema in known if gitlab_schema in allowed]
    if len(fitting) == 1:
        return fitting[0]
    remedy = f'add "{qualified_name}" = "<gitlab schema>" under [databases.<name>.table_schemas]'
    if not known:
        problem = f"no gitlab schema is known for table {qualified_name}"
    elif fitting:
        problem = f"table {qualified_name} may belong to {' or '.join(fitting)}"
    else:
        problem = (
            f"table {qualified_name} belongs to {' or '.join(known)}, "
            f"and the database's gitlab_schemas are {', '.join(allowed) or 'empty'}"
        )
        remedy = f"list the gitlab schema under [databases.<name>], or {remedy}"
    raise UnmappedTable(problem, remedy=remedy)

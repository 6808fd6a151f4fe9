"""Refuses a schema `headrace` that somebody else made: what is in it runs as whoever writes its tables.

A role with CREATE on the database can make the schema first, with defaults, triggers or views of its own. Then the
administrator's script, which is a superuser's, or the first start would run them.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg
from psycopg import sql

from schemas.errors import Refused

_FOREIGN: Final = """
SELECT pg_catalog.format('%s is of role %I', found.what, r.rolname)
  FROM (SELECT 'schema headrace', n.nspowner FROM pg_catalog.pg_namespace n
         WHERE n.nspname OPERATOR(pg_catalog.=) 'headrace'
        UNION ALL
        SELECT pg_catalog.format('headrace.%I', c.relname), c.relowner
          FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
         WHERE n.nspname OPERATOR(pg_catalog.=) 'headrace'
        UNION ALL
        SELECT pg_catalog.format('the function of trigger %I on headrace.%I', t.tgname, c.relname), f.proowner
          FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) t.tgrelid
          JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
          JOIN pg_catalog.pg_proc f ON f.oid OPERATOR(pg_catalog.=) t.tgfoid
         WHERE n.nspname OPERATOR(pg_catalog.=) 'headrace' AND NOT t.tgisinternal) AS found (what, owner)
  JOIN pg_catalog.pg_roles r ON r.oid OPERATOR(pg_catalog.=) found.owner
 WHERE NOT (r.rolsuper OR r.rolcreaterole OR r.rolname OPERATOR(pg_catalog.=) current_user
            OR r.oid OPERATOR(pg_catalog.=) (SELECT d.datdba FROM pg_catalog.pg_database d
                                              WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()))
UNION ALL
SELECT pg_catalog.format('headrace.%I has the rule %I', c.relname, w.rulename)
  FROM pg_catalog.pg_rewrite w JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) w.ev_class
  JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
 WHERE n.nspname OPERATOR(pg_catalog.=) 'headrace'
 LIMIT 1
"""
"""Whoever may make roles, or owns the database, is an administrator here: a managed server has no superusers.

A function runs only where something calls it, as no statement of headrace's does; a table's owner may have the guard's.
"""


class SchemaPlanted(Refused):
    """Have an administrator look at schema headrace, and drop it or make an administrator the owner of all in it."""


def require_own_schema(connection: psycopg.Connection[Any]) -> None:
    """Raise SchemaPlanted where schema `headrace` has what another role than this one or an administrator owns.

    That holds for the function of a trigger on its tables as well, and for every rule on them, whoever made it.
    """
    row = connection.execute(_FOREIGN).fetchone()
    if row is not None:
        raise SchemaPlanted(f"schema headrace was not made by headrace or an administrator: {row[0]}")


def script() -> str:
    """Return the same as a statement of the administrator's script."""
    return (
        sql.SQL(
            "DO $headrace$ DECLARE planted text := ({}); BEGIN IF planted IS NOT NULL THEN"
            " RAISE EXCEPTION 'schema headrace was not made by headrace or an administrator: %', planted"
            " USING HINT = {}; END IF; END $headrace$;"
        )
        .format(sql.SQL(_FOREIGN), sql.Literal(SchemaPlanted.__doc__))
        .as_string(None)
    )

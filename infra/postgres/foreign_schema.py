"""Refuses a schema `headrace` that another role created: its triggers run with the rights of the writing role.

A role with CREATE on the database can create the schema first, with its own defaults, triggers or views. The
administrator's script, run as a superuser, or the first start would then run them.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg
from psycopg import sql

from schemas.errors import Refused

_FOREIGN: Final = """
SELECT pg_catalog.format('%s is owned by role %I', found.what, r.rolname)
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
"""A role with CREATEROLE, or the database's owner, counts as an administrator: a managed server has no superusers.

Functions are not checked: none of headrace's statements calls one, and a table's owner may own the guard's.
"""


class SchemaPlanted(Refused):
    """Have an administrator inspect schema headrace, and drop it or become the owner of everything in it."""


def require_own_schema(connection: psycopg.Connection[Any]) -> None:
    """Raise SchemaPlanted if another role than this one or an administrator owns anything in schema `headrace`.

    This includes the functions of triggers on its tables, and every rule on them, no matter which role created it.
    """
    row = connection.execute(_FOREIGN).fetchone()
    if row is not None:
        raise SchemaPlanted(f"schema headrace was not created by headrace or an administrator: {row[0]}")


def script() -> str:
    """Return the same check as a statement of the administrator's script."""
    return (
        sql.SQL(
            "DO $headrace$ DECLARE planted text := ({}); BEGIN IF planted IS NOT NULL THEN"
            " RAISE EXCEPTION 'schema headrace was not created by headrace or an administrator: %', planted"
            " USING HINT = {}; END IF; END $headrace$;"
        )
        .format(sql.SQL(_FOREIGN), sql.Literal(SchemaPlanted.__doc__))
        .as_string(None)
    )

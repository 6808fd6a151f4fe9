"""Checks one promise of an author's migration, in a database and with topics of its own."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import psycopg

from consumers.testing.promises import PROMISES, NotApplicable
from consumers.testing.table_case import TableCase
from consumers.testing.world import world_of
from infra.stack import Stack
from schemas.lazy_dataclass import dataclass


@dataclass(frozen=True)
class Contract:
    """What the fixture `headrace_contract` gives: a test that takes it runs once for each promise."""

    promise: str
    _stack: Stack
    _directory: Path
    _skip: Callable[[str], NoReturn]

    def check(self, case: type[TableCase]) -> None:
        """Raise AssertionError if the case's migration breaks the promise; skip the test if it does not apply."""
        servers, name = self._stack.postgres, f"test_{secrets.token_hex(4)}"
        dsn = servers.create_database(name)
        try:
            with psycopg.connect(dsn, autocommit=True) as connection:
                world = world_of(
                    case.migration,
                    case,
                    self._stack.endpoints.bootstrap_servers,
                    f"t{secrets.token_hex(3)}",
                    connection,
                    dsn,
                    self._directory,
                    case.options,
                )
                PROMISES[self.promise](world)
        except NotApplicable as reason:
            self._skip(str(reason))
        finally:
            servers.drop_database(name)

"""An array's literal has the values that were given, whatever is in them."""

from __future__ import annotations

import datetime as dt
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from infra.postgres.parameters import array_parameter
from tests.conftest import Database


@pytest.fixture
def connection(database: Database) -> psycopg.Connection[Any]:
    return database.connect()


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"))))
def test_texts_are_kept(connection: psycopg.Connection[Any], values: list[str]) -> None:
    assert connection.execute("SELECT %s::text[]", (array_parameter(values),)).fetchone() == (values,)


@pytest.mark.parametrize("value", ["", "NULL", "null", "{", "}", ",", '"', "\\", '\\"', " a ", "\n", "a,b", "'"])
def test_text_that_means_something_in_a_literal_is_a_value(connection: psycopg.Connection[Any], value: str) -> None:
    wanted = [value, "other"]
    assert connection.execute("SELECT %s::text[]", (array_parameter(wanted),)).fetchone() == (wanted,)


@pytest.mark.parametrize(
    ("values", "of_type"),
    [
        ([1, -2, 1 << 62], "bigint"),
        ([], "bigint"),
        ([True, False], "boolean"),
        ([b"\0\\", b'"'], "bytea"),
        ([dt.date(2020, 1, 2)], "date"),
        ([1.5, -0.25], "double precision"),
        ([None, "a"], "text"),
    ],
)
def test_other_values_are_kept(connection: psycopg.Connection[Any], values: list[Any], of_type: str) -> None:
    query = sql.SQL("SELECT %s::{}[]").format(sql.SQL(of_type))
    assert connection.execute(query, (array_parameter(values),)).fetchone() == (values,)

"""Requests drawn from the OpenAPI description: none makes the console fail, and each answer is as it is described."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
import psycopg
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from tests.consumers.container_repositories import Feed
from tests.consumers.web.console import TOKEN, Client

pytestmark = pytest.mark.stack

CASES = 15
KNOWN = "skip_resets"
CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance]


def test_no_request_of_the_description_makes_it_fail(
    feed: Feed, connection: psycopg.Connection[Any], console: Client
) -> None:
    described = schemathesis.openapi.from_url(f"{console.url}openapi.json")
    statuses: set[int] = set()
    for found in described.get_all_operations():
        assert isinstance(found, Ok)
        for headers in ({"Authorization": f"Bearer {TOKEN}"}, {}):
            sending(found.ok().as_strategy(), headers, statuses)()
    assert {200, 400, 401, 404} <= statuses, "some did something"


def sending(cases: Any, headers: dict[str, str], statuses: set[int]) -> Callable[[], None]:
    """Return a function that sends each of some cases with these headers, and checks and collects the answers."""

    @hypothesis.settings(
        max_examples=CASES, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(case=cases)
    def send(case: Any) -> None:
        if "name" in (case.path_parameters or {}) and case.path_parameters["name"].startswith("a"):
            case.path_parameters["name"] = KNOWN  # drawn at random, it would never be one that exists
        answer = case.call_and_validate(headers=headers, checks=CHECKS, timeout=60)
        statuses.add(answer.status_code)

    return send

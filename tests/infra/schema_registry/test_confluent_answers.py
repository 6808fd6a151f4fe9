"""Answers in the form of Confluent's Schema Registry, without a server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from infra.schema_registry.confluent_answers import BadRequest, answer, request
from infra.schema_registry.subjects import Subjects
from schemas.avro import key_schema, value_schema
from schemas.events import Column, Relation

RELATION = Relation(1, "public", "projects", "d", (Column("id", 20), Column("name", 25)), ("id",))
KEY, VALUE = (
    json.dumps(each) for each in (key_schema(RELATION, "gitlab_main", ("id",)), value_schema(RELATION, "gitlab_main"))
)
SUBJECT = "p.gitlab_main.projects-value"
VERSION = {"subject": SUBJECT, "version": 1, "id": 2, "schema": VALUE}


@pytest.fixture
def subjects() -> Subjects:
    found = Subjects()
    for number, (subject, text) in enumerate(
        (("p.gitlab_main.projects-key", KEY), (SUBJECT, VALUE), ("odd/ü name", '"long"')), start=1
    ):
        found.add(number, subject, text)
    return found


def ask(subjects: Subjects, path: str, method: str = "GET", body: Any = None) -> tuple[int, Any]:
    found = answer(subjects, request(method, path, b"" if body is None else json.dumps(body).encode()))
    return int(found.status), found.document


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/", {}),
        ("/subjects", ["odd/ü name", "p.gitlab_main.projects-key", SUBJECT]),
        ("/subjects/", ["odd/ü name", "p.gitlab_main.projects-key", SUBJECT]),
        ("/subjects?deleted=true&subjectPrefix=p.gitlab_main.projects-v", [SUBJECT]),
        (f"/subjects/{SUBJECT}/versions", [1]),
        (f"/subjects/{SUBJECT}/versions/1", VERSION),
        (f"/subjects/{SUBJECT}/versions/latest", VERSION),
        (f"/subjects/{SUBJECT}/versions/-1", VERSION),
        (f"/subjects/{SUBJECT}/versions/1/schema", json.loads(VALUE)),
        (f"/subjects/{SUBJECT}/versions/1/referencedby", []),
        ("/subjects/odd%2F%C3%BC%20name/versions", [1]),
        ("/schemas/ids/2", {"schema": VALUE}),
        ("/schemas/ids/2?fetchMaxId=false", {"schema": VALUE}),
        ("/schemas/ids/1/schema", json.loads(KEY)),
        ("/schemas/ids/2/subjects", [SUBJECT]),
        ("/schemas/ids/2/versions", [{"subject": SUBJECT, "version": 1}]),
        ("/schemas/types", ["AVRO"]),
        ("/config", {"compatibilityLevel": "BACKWARD"}),
        (f"/config/{SUBJECT}?defaultToGlobal=true", {"compatibilityLevel": "BACKWARD"}),
        ("/mode", {"mode": "READONLY"}),
        (f"/mode/{SUBJECT}", {"mode": "READONLY"}),
        ("/contexts", ["."]),
    ],
)
def test_reads_have_confluents_form(subjects: Subjects, path: str, document: Any) -> None:
    assert ask(subjects, path) == (200, document)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/subjects/other/versions", 404, 40401),
        ("/subjects/other/versions/latest", 404, 40401),
        (f"/subjects/{SUBJECT}/versions/2", 404, 40402),
        (f"/subjects/{SUBJECT}/versions/0", 422, 42202),
        (f"/subjects/{SUBJECT}/versions/x", 422, 42202),
        (f"/subjects/{SUBJECT}/versions/{'9' * 4000}", 422, 42202),
        (f"/subjects/{SUBJECT}/versions/1/other", 404, 404),
        ("/schemas/ids/4", 404, 40403),
        ("/schemas/ids/0", 404, 40403),
        ("/schemas/ids/-1", 404, 40403),
        ("/schemas/ids/%D9%A2", 404, 40403),  # an Arabic two
        ("/schemas/ids/2/other", 404, 404),
        (f"/config/{SUBJECT}", 404, 40408),
        ("/elsewhere", 404, 404),
    ],
)
def test_what_is_not_there_has_confluents_error(subjects: Subjects, path: str, status: int, code: int) -> None:
    found, document = ask(subjects, path)
    assert (found, document["error_code"]) == (status, code)
    assert document["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", f"/subjects/{SUBJECT}/versions"),
        ("DELETE", f"/subjects/{SUBJECT}"),
        ("DELETE", f"/subjects/{SUBJECT}/versions/1"),
        ("PUT", "/config"),
        ("PUT", "/mode"),
        ("PATCH", "/subjects"),
        ("POST", "/schemas/ids/1"),
        ("OPTIONS", "/"),
    ],
)
def test_writes_are_refused(subjects: Subjects, method: str, path: str) -> None:
    message = "this registry is read-only: headrace's producers register the schemas"
    assert ask(subjects, path, method, {"schema": VALUE}) == (405, {"error_code": 405, "message": message})


def test_lookup_finds_the_version_of_a_schema(subjects: Subjects) -> None:
    spaced = json.dumps(json.loads(VALUE), indent=2, sort_keys=True)
    assert ask(subjects, f"/subjects/{SUBJECT}", "POST", {"schema": spaced}) == (200, VERSION)
    assert ask(subjects, f"/subjects/{SUBJECT}", "POST", {"schema": KEY})[1]["error_code"] == 40403
    assert ask(subjects, "/subjects/other", "POST", {"schema": KEY})[1]["error_code"] == 40401


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no JSON",
        b"[]",
        b"7",
        b"{}",
        b'{"schema": 7}',
        b'{"schema": "no JSON"}',
        b'{"schema": "\\ud800"}',
        b"[" * 100_000,
        json.dumps({"schema": "[" * 100_000}).encode(),
        json.dumps({"schema": '{"type":' * 500 + '"int"' + "}" * 500}).encode(),
        b"\xff\xfe",
    ],
)
def test_lookup_of_no_schema_is_an_error(subjects: Subjects, body: bytes) -> None:
    found = answer(subjects, request("POST", f"/subjects/{SUBJECT}", body))
    assert found.document["error_code"] in (42201, 40403)


@pytest.mark.parametrize("target", ["/%ff", "/%zz", "/%", f"/{'a' * 5000}", "//[", "/?a=%ff", f"/?{'a=1&' * 11}"])
def test_unreadable_target_is_refused(target: str) -> None:
    with pytest.raises(BadRequest):
        request("GET", target)


def test_only_what_no_later_record_changes_is_lasting(subjects: Subjects) -> None:
    lasting = {path: answer(subjects, request("GET", path)).lasting for path in ("/schemas/ids/2", "/mode", "/config")}
    assert lasting == dict.fromkeys(lasting, True)
    changing = ("/subjects", "/schemas/ids/9", "/schemas/ids/2/versions", f"/subjects/{SUBJECT}/versions/latest")
    assert [path for path in changing if answer(subjects, request("GET", path)).lasting] == []

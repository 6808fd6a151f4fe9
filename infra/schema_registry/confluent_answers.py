"""Answers requests in the form of Confluent's Schema Registry, read-only. Pure.

Source: Confluent's documentation, "Schema Registry API Reference".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from infra.schema_registry.subjects import Subjects, Version
from schemas.lazy_dataclass import dataclass

CONTENT_TYPE: Final = "application/vnd.schemaregistry.v1+json"
LONGEST_BODY: Final = 1 << 20
READS: Final = ("GET", "HEAD")

_LONGEST_PATH: Final = 1 << 12
_LONGEST_NUMBER: Final = 10
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_READ_ONLY: Final = "this registry is read-only: headrace's producers register the schemas"


@dataclass(frozen=True)
class Answer:
    """A status and a document; `lasting`: no later record of the topic changes it."""

    status: HTTPStatus
    document: Any
    lasting: bool = False


@dataclass(frozen=True)
class Request:
    """A request's method, the parts of its path, its parameters, and its body."""

    method: str
    parts: tuple[str, ...]
    parameters: Mapping[str, str]
    body: bytes = b""


class BadRequest(Exception):  # its document is the answer
    """A request that cannot be read."""


def error(status: HTTPStatus, code: int, message: str, *, lasting: bool = False) -> Answer:
    """Return an error in Confluent's form."""
    return Answer(status, {"error_code": code, "message": message}, lasting)


def request(method: str, target: str, body: bytes = b"") -> Request:
    """Return a request by its target, such as `/subjects/a%2Fb/versions?deleted=true`. Raises BadRequest."""
    if len(target) > _LONGEST_PATH:
        raise BadRequest(f"a request's path has at most {_LONGEST_PATH:,} characters")
    try:
        url = urlsplit(target)
        if _BAD_ESCAPE.search(url.path):
            raise ValueError
        parts = tuple(unquote(part, errors="strict") for part in url.path.split("/") if part)
        given = parse_qs(url.query, keep_blank_values=True, errors="strict", max_num_fields=10)
    except ValueError:
        raise BadRequest("a request's path must be percent-encoded UTF-8") from None
    return Request(method, parts, {name: values[-1] for name, values in given.items()}, body)


def answer(subjects: Subjects, asked: Request) -> Answer:
    """Return the answer to a request."""
    if asked.method in READS:
        return _read(subjects, asked)
    if asked.method == "POST" and len(asked.parts) == 2 and asked.parts[0] == "subjects":
        return _lookup(subjects, asked)
    return error(HTTPStatus.METHOD_NOT_ALLOWED, 405, _READ_ONLY, lasting=True)


def _read(subjects: Subjects, asked: Request) -> Answer:
    match asked.parts:
        case ("subjects",):
            prefix = asked.parameters.get("subjectPrefix", "")
            return _ok([name for name in subjects.names() if name.startswith(prefix)])
        case ("subjects", subject, "versions"):
            found = subjects.versions(subject)
            return _ok([each.number for each in found]) if found else _no_subject(subject)
        case ("subjects", subject, "versions", number, *rest) if rest in ([], ["schema"], ["referencedby"]):
            return _version(subjects, subject, number, rest)
        case ("schemas", "ids", number, *rest) if rest in ([], ["schema"], ["subjects"], ["versions"]):
            return _schema(subjects, number, rest)
    return _fixed(asked)


_COMPATIBILITY: Final = {"compatibilityLevel": "BACKWARD"}
_FIXED: Final[Mapping[tuple[str, ...], Any]] = {
    (): {},
    ("schemas", "types"): ["AVRO"],
    ("config",): _COMPATIBILITY,
    ("mode",): {"mode": "READONLY"},
    ("contexts",): ["."],
}


def _fixed(asked: Request) -> Answer:
    """Return the answer to a request that depends on no schema."""
    if asked.parts in _FIXED:
        return _ok(_FIXED[asked.parts], lasting=True)
    match asked.parts:
        case ("config", _) if asked.parameters.get("defaultToGlobal") == "true":
            return _ok(_COMPATIBILITY, lasting=True)
        case ("config", subject):
            message = f"Subject '{subject}' does not have subject-level compatibility configured"
            return error(HTTPStatus.NOT_FOUND, 40408, message, lasting=True)
        case ("mode", _):
            return _ok(_FIXED["mode",], lasting=True)
    return error(HTTPStatus.NOT_FOUND, 404, "HTTP 404 Not Found", lasting=True)


def _ok(document: Any, *, lasting: bool = False) -> Answer:
    return Answer(HTTPStatus.OK, document, lasting)


def _no_subject(subject: str) -> Answer:
    return error(HTTPStatus.NOT_FOUND, 40401, f"Subject '{subject}' not found.")


def _document(version: Version) -> dict[str, Any]:
    return {
        "subject": version.subject,
        "version": version.number,
        "id": version.schema_id,
        "schema": version.text,
    }


def _number(text: str) -> int | None:
    """Return a positive number, None for anything else."""
    readable = text.isascii() and text.isdigit() and len(text) <= _LONGEST_NUMBER
    return int(text) or None if readable else None


def _version(subjects: Subjects, subject: str, text: str, rest: Sequence[str]) -> Answer:
    versions = subjects.versions(subject)
    if not versions:
        return _no_subject(subject)
    number = len(versions) if text in ("latest", "-1") else _number(text)
    if number is None:
        message = f"The specified version '{text}' is not a valid version id."
        return error(HTTPStatus.UNPROCESSABLE_ENTITY, 42202, message, lasting=True)
    if number > len(versions):
        return error(HTTPStatus.NOT_FOUND, 40402, f"Version {number} not found.")
    version = versions[number - 1]
    if rest == ["referencedby"]:
        return _ok([], lasting=True)
    return _ok(json.loads(version.text) if rest else _document(version))


def _schema(subjects: Subjects, text: str, rest: Sequence[str]) -> Answer:
    number = _number(text)
    if number is None or number not in subjects.texts:
        return error(HTTPStatus.NOT_FOUND, 40403, f"Schema {text} not found", lasting=number is None)
    forms: Mapping[str, Callable[[], Answer]] = {
        "": lambda: _ok({"schema": subjects.texts[number]}, lasting=True),
        "schema": lambda: _ok(json.loads(subjects.texts[number]), lasting=True),
        "subjects": lambda: _ok(sorted({each.subject for each in subjects.versions_of(number)})),
        "versions": lambda: _ok(
            [{"subject": each.subject, "version": each.number} for each in subjects.versions_of(number)]
        ),
    }
    return forms["".join(rest)]()


def _lookup(subjects: Subjects, asked: Request) -> Answer:
    """Return the version of a subject that has the schema of the body: a read, although it is a POST."""
    subject = asked.parts[1]
    try:
        found = subjects.find(subject, json.loads(json.loads(asked.body)["schema"]))
    except (ValueError, LookupError, TypeError, RecursionError):
        return error(HTTPStatus.UNPROCESSABLE_ENTITY, 42201, "Either the input schema or one its references is invalid")
    if not subjects.versions(subject):
        return _no_subject(subject)
    return _ok(_document(found)) if found else error(HTTPStatus.NOT_FOUND, 40403, "Schema not found")

"""Models of the documents that the commands of settings and authors print with --json."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict

from infra.settings.description.effective import Origin
from tests.document_models import Document


class Written(Document):
    migration: str
    files: list[str]
    listed: bool


class Added(Document):
    migration: str
    file: str
    section: str
    database: str
    rows: int | None
    estimated: bool
    rate: float | None
    tried: int
    plan: list[str]
    seconds: float | None


class Tried(Document):
    migration: str
    database: str
    table: str
    key: dict[str, str]
    topic: str
    partition: int
    offset: int
    operation: str | None
    decision: Literal["change", "skip", "dead letter"]
    reason: str | None
    statements: list[str]
    changed: int | None


class Mistake(Document):
    place: str
    line: int | None
    problem: str


class Unchecked(Document):
    name: str
    place: str
    problem: str
    remedy: str


class Checked(Document):
    file: str
    mistakes: list[Mistake]
    unchecked: list[Unchecked]


class Setting(Document):
    model_config = ConfigDict(extra="forbid")

    key: str
    value: Any
    origin: Origin
    line: int | None
    variable: str | None


class Shown(Document):
    file: str
    settings: list[Setting]

"""The reaction to each of librdkafka's errors: every code has one, and the documentation agrees."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from confluent_kafka import KafkaError

from infra.kafka import clients
from infra.kafka.denials import AccessDenied
from infra.kafka.kafka_errors import MEANINGS, Course
from infra.settings.model import KafkaSettings
from schemas.errors import BrokerUnavailable, Fenced, HeadraceError, PreflightFailed, SettingsError

DOCS = Path(__file__).parents[3] / "docs" / "reference" / "kafka-errors.md"
SETTINGS = KafkaSettings(bootstrap_servers="kafka:9092")
OURS: dict[Course, set[type[HeadraceError]]] = {
    Course.WAITED: {BrokerUnavailable},
    Course.REDONE: {HeadraceError},
    Course.REFUSED: {PreflightFailed, SettingsError, AccessDenied},
    Course.FENCED: {Fenced},
    Course.NAMED: {HeadraceError},
}


def names() -> dict[int, str]:
    """Return code → name of every error that the library has."""
    found = {getattr(KafkaError, name): name for name in dir(KafkaError) if name.isupper()}
    return {code: name for code, name in found.items() if isinstance(code, int)}


def test_every_error_of_the_library_is_decided() -> None:
    assert len(names()) > 160
    assert MEANINGS.keys() == names().keys()


def test_each_becomes_the_error_that_its_course_means() -> None:
    for code, meaning in MEANINGS.items():
        error = clients.translate(KafkaError(code, "two\nlines"), SETTINGS)
        assert type(error) in OURS[meaning.course], names()[code]
        assert "two lines" in str(error)
        assert error.remedy


@pytest.mark.parametrize(("code", "waited"), [(KafkaError.INVALID_TXN_STATE, True), (KafkaError.INVALID_RECORD, False)])
def test_aborted_transaction_is_retried_if_that_may_help(code: int, waited: bool) -> None:
    error = KafkaError(code, "aborted", txn_requires_abort=True)
    assert isinstance(clients.translate(error, SETTINGS), BrokerUnavailable) is waited


def test_unknown_code_is_reported_and_its_transaction_retried() -> None:
    unknown = 9_999
    assert type(clients.translate(KafkaError(unknown, "new"), SETTINGS)) is HeadraceError
    aborted = KafkaError(unknown, "new", txn_requires_abort=True)
    assert type(clients.translate(aborted, SETTINGS)) is BrokerUnavailable


def test_the_documentation_says_what_the_table_says() -> None:
    rows = re.findall(
        r"^\| (-?\d+) \| `(\w+)` \| ([^|]+) \| ([^|]+) \|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE
    )
    said = {int(code): (name, course, why) for code, name, course, why in rows}
    known = names()
    assert said == {code: (known[code], str(m.course), m.why) for code, m in MEANINGS.items()}
    assert list(said) == sorted(said)

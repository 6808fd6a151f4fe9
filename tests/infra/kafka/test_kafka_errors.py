"""The reaction to each of librdkafka's errors: every code has one."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError

from infra.kafka import clients
from infra.kafka.denials import AccessDenied
from infra.kafka.kafka_errors import MEANINGS, Course
from infra.settings.model import KafkaSettings
from schemas.errors import BrokerUnavailable, Fenced, HeadraceError, PreflightFailed, SettingsError
from tests.reference.kafka_errors_page import names

SETTINGS = KafkaSettings(bootstrap_servers="kafka:9092")
OURS: dict[Course, set[type[HeadraceError]]] = {
    Course.WAITED: {BrokerUnavailable},
    Course.REDONE: {HeadraceError},
    Course.REFUSED: {PreflightFailed, SettingsError, AccessDenied},
    Course.FENCED: {Fenced},
    Course.NAMED: {HeadraceError},
}


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

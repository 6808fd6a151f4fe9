"""TLS, certificates and SCRAM to Kafka: which clients may log in, and the error for those that may not."""

from __future__ import annotations

import socket

import pytest

from infra.kafka import clients
from infra.kafka.denials import LoginRefused
from infra.settings.model import KafkaSettings
from schemas.errors import BrokerUnavailable
from tests.security.authority import Authority
from tests.security.secured_kafka import SecuredKafka

pytestmark = pytest.mark.stack


def refused(settings: KafkaSettings) -> str:
    with pytest.raises(LoginRefused) as caught:
        clients.ensure_reachable(settings, timeout=2.0)
    assert "kafka.options" in caught.value.remedy
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.long
def test_scram_user_may_log_in_over_tls(secured_kafka: SecuredKafka) -> None:
    secured_kafka.add_users(["somebody"])
    clients.ensure_reachable(secured_kafka.scram("somebody"))
    output = refused(secured_kafka.scram("somebody", sasl_password="wrong-s3cret"))
    assert "does not let User:somebody in" in output
    assert "Authentication failed" in output
    assert "wrong-s3cret" not in output


def test_broker_of_another_authority_is_refused(secured_kafka: SecuredKafka, authority: Authority) -> None:
    other = Authority(authority.certificate.parent, "another")
    secured_kafka.add_users(["somebody"])
    assert "certificate verify failed" in refused(
        secured_kafka.scram("somebody", ssl_ca_location=str(other.certificate))
    )


def test_client_certificate_may_log_in(secured_kafka: SecuredKafka, authority: Authority) -> None:
    clients.ensure_reachable(secured_kafka.mutual(authority.client("a-client")))
    assert "certificate required" in refused(secured_kafka.mutual(None))
    stranger = Authority(authority.certificate.parent, "stranger").client("a-stranger")
    output = refused(secured_kafka.mutual(stranger))
    assert "does not let the principal of the certificate in a-stranger.crt in" in output


def test_client_without_tls_gets_another_error_than_for_a_broker_that_is_down(secured_kafka: SecuredKafka) -> None:
    assert "APIVERSION_QUERY" in refused(secured_kafka.mutual(None, security_protocol="PLAINTEXT"))
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        nowhere = KafkaSettings(bootstrap_servers=f"127.0.0.1:{held.getsockname()[1]}")
        with pytest.raises(BrokerUnavailable, match="Connection refused") as caught:
            clients.ensure_reachable(nowhere, timeout=1.0)
    assert not isinstance(caught.value, LoginRefused)

"""Tokens for Kafka that a command prints: each form of output, and when the command is run."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import pytest

from infra.kafka import clients, oauth_tokens
from infra.kafka.oauth_tokens import Token, TokenUnreadable, callback, parsed
from infra.service.command_output import CommandFailed
from infra.settings.model import KafkaSettings

NOW = 1_000.0
OPTIONS: dict[str, str | int | float | bool] = {"security.protocol": "SASL_SSL", "sasl.mechanisms": "OAUTHBEARER"}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oauth_tokens, "_TOKENS", oauth_tokens._Tokens())


def jwt(claims: object) -> str:
    parts = (json.dumps(part).encode() for part in ({"alg": "none"}, claims))
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts) + "."


@pytest.mark.parametrize(
    ("text", "token"),
    [
        ('{"token": "abc", "expires_at": 1900}', Token("abc", 1900, "")),
        ('{"token": "abc", "lifetime": 900, "principal": "me"}', Token("abc", 1900, "me")),
        ('{"token": "abc", "expires_at": 1900.5, "lifetime": 1}', Token("abc", 1900.5, "")),
        (jwt({"exp": 1900, "sub": "me"}), Token(jwt({"exp": 1900, "sub": "me"}), 1900, "me")),
        (jwt({"exp": 1900}) + "c2ln", Token(jwt({"exp": 1900}) + "c2ln", 1900, "")),
    ],
)
def test_forms_of_output(text: str, token: Token) -> None:
    assert parsed(text, NOW) == token


@pytest.mark.parametrize(
    "text",
    [
        *("s3cret", "s3.cr.et", '"s3cret"', "[]", "{}", '{"token": "s3cret"}', '{"token": 3, "lifetime": 900}'),
        *('{"token": "s3cret", "expires_at": true}', '{"token": "", "lifetime": 9}', jwt({"sub": "s3cret"}), jwt([3])),
    ],
)
def test_output_without_token_or_expiry_is_an_error_that_does_not_show_it(text: str) -> None:
    with pytest.raises(TokenUnreadable) as raised:
        parsed(text, NOW)
    assert raised.value.problem == "kafka.oauth_token_command printed no token, or none with an expiry"
    assert "s3c" not in str(raised.value)


def test_expired_token_is_an_error() -> None:
    with pytest.raises(TokenUnreadable, match="printed a token that expired 100 s ago"):
        parsed('{"token": "abc", "expires_at": 900}', NOW)
    assert "abc" not in repr(Token("abc", 1))


def test_clients_share_a_token_for_half_of_its_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "runs"
    program = (
        "import json, sys; file = open(sys.argv[1], 'a'); file.write('x'); file.flush();"
        " print(json.dumps({'token': open(sys.argv[1]).read(), 'lifetime': 100, 'principal': 'me'}))"
    )
    now = NOW
    monkeypatch.setattr("infra.kafka.oauth_tokens.time.time", lambda: now)
    words = [sys.executable, "-c", program, str(runs)]
    one, other = callback(words), callback(words)
    assert one("") == other("") == ("x", 1100, "me", {})
    now = 1049.0
    assert other("")[0] == "x"
    now = 1080.0
    assert one("") == ("xx", 1180, "me", {}), "when librdkafka asks for the next one"


def test_failing_command_is_named_before_a_client_is_created() -> None:
    words = (sys.executable, "-c", "import sys; print('s3cret'); sys.exit('no credentials')")
    settings = KafkaSettings(oauth_token_command=words, options=OPTIONS)
    for create in (clients.producer, clients.admin, lambda each: clients.consumer(each, "group")):
        with pytest.raises(CommandFailed) as raised:
            create(settings)
        assert raised.value.problem == (
            f"kafka.oauth_token_command ({sys.executable}) failed with exit code 1: no credentials"
        )
    assert "s3cret" not in f"{raised.value} {settings!r}"


@pytest.mark.parametrize(
    "options",
    [{}, {"security.protocol": "SASL_SSL", "sasl.mechanisms": "PLAIN"}, {"sasl.mechanism": "OAUTHBEARER"}],
)
def test_command_needs_the_mechanism(options: dict[str, str | int | float | bool]) -> None:
    with pytest.raises(ValueError, match=r"oauth_token_command: needs \"security\.protocol\" = \"SASL_SSL\" and"):
        KafkaSettings(oauth_token_command=("print-it",), options=options)

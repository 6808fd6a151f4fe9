"""Options of librdkafka: each belongs to the user or to headrace, and is checked before a client is built."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path

import confluent_kafka
import pytest

from infra.settings import kafka_options
from infra.settings.file import load_settings
from infra.settings.kafka_options import OURS, YOURS, Flag, OneOf, Text, Whole
from infra.settings.model import KafkaSettings
from schemas.errors import SettingsError

SECRET = "s3cret-of-the-test"


@pytest.fixture(scope="module")
def librdkafka() -> ctypes.CDLL:
    """The library itself, as confluent-kafka's wheel brings it."""
    package = Path(confluent_kafka.__file__).parent
    found = [*package.parent.glob("confluent_kafka.libs/librdkafka*"), *package.glob(".dylibs/librdkafka*")]
    if not found:
        pytest.skip("this confluent-kafka uses the system's librdkafka")
    library = ctypes.CDLL(str(found[0]))
    library.rd_kafka_conf_new.restype = ctypes.c_void_p
    library.rd_kafka_conf_set.argtypes = [ctypes.c_void_p, *[ctypes.c_char_p] * 3, ctypes.c_size_t]
    return library


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "headrace.toml"


def properties(library: ctypes.CDLL, path: Path) -> Iterator[str]:
    """Yield the name of each property that the library lists of itself."""
    c = ctypes.CDLL(None)
    c.fopen.restype = ctypes.c_void_p
    stream = ctypes.c_void_p(c.fopen(str(path).encode(), b"w"))
    library.rd_kafka_conf_properties_show(stream)
    c.fclose(stream)
    for line in path.read_text(encoding="utf-8").splitlines():
        if found := re.match(r"([a-z][a-z0-9._]+) +\| +[*CP] ", line):
            yield found[1]


def test_every_option_of_the_library_is_decided_once(librdkafka: ctypes.CDLL, tmp_path: Path) -> None:
    listed = set(properties(librdkafka, tmp_path / "listed"))
    of_the_binding = {"oauth_cb", "on_commit", "on_delivery", "logger", "default.topic.config"}
    assert len(listed) > 150
    assert YOURS.keys() | OURS.keys() == listed | of_the_binding
    assert not YOURS.keys() & OURS.keys()


def test_the_library_takes_what_the_table_allows(librdkafka: ctypes.CDLL) -> None:
    # Of these a value has to name what is there: a mechanism, a library; one is for Windows.
    told_by_the_library = {"builtin.features", "debug", "plugin.library.paths", "ssl.ca.certificate.stores"}
    configuration, said = librdkafka.rd_kafka_conf_new(), ctypes.create_string_buffer(512)
    for name, option in YOURS.items():
        match option.takes:
            case Whole(low, high):
                values = [str(low), str(high)]
            case OneOf(words):
                values = [word.upper() for word in words] if "assertion.algorithm" in name else list(words)
            case Flag():
                values = ["true", "false"]
            case Text():
                values = [] if name in told_by_the_library or name.startswith("sasl.mechanism") else ["a"]
        for value in values:
            taken = librdkafka.rd_kafka_conf_set(configuration, name.encode(), value.encode(), said, 512)
            assert taken == 0, said.value


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('"auto.offset.reset" = "latest"', "is gone, events are lost: an error, never a reset"),
        ('"isolation.level" = "read_uncommitted"', "aborted transactions must not be read"),
        ('"group.id" = "ours"', "each migration has its own group"),
        ('"group.instance.id" = "me"', "two consumers with one id fence each other"),
        ('"group.protocol" = "consumer"', "built for the classic protocol"),
        ('"partition.assignment.strategy" = "range"', "cooperative-sticky is used"),
        ('"transactional.id" = "tx"', "each source has its own"),
        ('"enable.idempotence" = false', "a retry writes an event twice"),
        ('"enable.partition.eof" = false', "how headrace knows that it has caught up"),
        ('partitioner = "random"', "agree on a key's partition"),
        ('"enable.auto.commit" = true', "offsets are in the ledger"),
        ('"bootstrap.servers" = "127.0.0.1:1"', "use bootstrap_servers under [kafka]"),
        ('"client.id" = "gitlab"', "it names consumers host:pid"),
        ('"session.timeout.ms" = 3000', "when another consumer takes over"),
        ('dr_cb = "f"', "an object or a callback"),
        ('"socket.blocking.max.ms" = 5', "librdkafka ignores it"),
        ("acks = 1", "must be all or -1: a record on fewer replicas may be lost"),
        ('"request.required.acks" = "0"', "must be all or -1"),
        ('"message.max.bytes" = "1MB"', "must be a whole number from 1000 to 1000000000"),
        ('"message.max.bytes" = 2_000_000_000', "must be a whole number from 1000 to 1000000000"),
        ('"message.max.bytes" = true', "must be a whole number from"),
        ('"linger.ms" = 1.5', "must be a whole number from 0 to 10000: events must arrive soon"),
        ('"message.timeout.ms" = 300', "must be a whole number from 1000 to 60000: a transaction of the producer"),
        ("retries = 0", "must be a whole number from 1 to 2147483647: an idempotent producer has to retry"),
        ('"fetch.wait.max.ms" = 30_000', "the end of a partition is reported only after this wait"),
        ('"socket.keepalive.enable" = "perhaps"', "must be true or false"),
        (f'"security.protocol" = "{SECRET}"', "must be one of plaintext, ssl, sasl_plaintext, sasl_ssl"),
        (f'"sasl.pasword" = "{SECRET}"', "librdkafka has no such option, did you mean sasl.password?"),
        ('"sasl.username" = true', "must be text"),
        ('"linger.ms" = 1\n"queue.buffering.max.ms" = 2', "is another name of linger.ms: set one of them"),
    ],
)
def test_invalid_option_is_reported_with_the_reason(file: Path, line: str, said: str) -> None:
    file.write_text(f"[kafka.options]\n{line}", encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        load_settings(file)
    message = str(caught.value)
    name = line.splitlines()[-1].split(" = ")[0]
    assert re.search(rf"settings file {file}:\d: kafka\.options\.{re.escape(name)}: ", message)
    assert said in message
    assert SECRET not in message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_an_option_of_the_environment_is_refused_by_its_variable(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('[kafka.options]\n"sasl.username" = "me"', encoding="utf-8")
    monkeypatch.setenv("HEADRACE_KAFKA__OPTIONS__TRANSACTIONAL_ID", SECRET)
    with pytest.raises(
        SettingsError, match=r"^environment variable HEADRACE_KAFKA__OPTIONS__TRANSACTIONAL_ID: "
    ) as one:
        load_settings(file)
    assert SECRET not in str(one.value)
    monkeypatch.delenv("HEADRACE_KAFKA__OPTIONS__TRANSACTIONAL_ID")
    monkeypatch.setenv("HEADRACE_KAFKA__OPTIONS__ACKS", "1")
    with pytest.raises(SettingsError, match=r"^environment variable HEADRACE_KAFKA__OPTIONS__ACKS: .* must be all"):
        load_settings(file)


def test_options_of_the_environment_are_taken_as_librdkafka_writes_them(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('[kafka.options]\n"message.max.bytes" = 3000000\n"sasl.username" = "me"', encoding="utf-8")
    monkeypatch.setenv("HEADRACE_KAFKA__OPTIONS__MESSAGE_MAX_BYTES", "2000000")
    monkeypatch.setenv("HEADRACE_KAFKA__OPTIONS__LOG_LEVEL", "3")
    monkeypatch.setenv("HEADRACE_KAFKA__OPTIONS__SOCKET_KEEPALIVE_ENABLE", "TRUE")
    assert load_settings(file).kafka.options == {
        "sasl.username": "me",
        "message.max.bytes": "2000000",
        "log_level": "3",
        "socket.keepalive.enable": "TRUE",
    }


def test_a_client_gets_the_users_options_that_are_for_its_kind() -> None:
    options = KafkaSettings(options={"linger.ms": 7, "fetch.min.bytes": 8, "client.rack": "a"}).options
    assert kafka_options.given_to(kafka_options.PRODUCER, options) == {"queue.buffering.max.ms": 7, "client.rack": "a"}
    assert kafka_options.given_to(kafka_options.CONSUMER, options) == {"fetch.min.bytes": 8, "client.rack": "a"}
    assert kafka_options.given_to(kafka_options.CONSUMER, {"group.id": "smuggled"}) == {}

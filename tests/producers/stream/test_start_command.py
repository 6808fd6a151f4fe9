"""The commands that open a stream, also with hostile names."""

from __future__ import annotations

import pytest
from psycopg.conninfo import conninfo_to_dict

from producers.stream.start_command import Streaming, for_replication, quote, start_command
from schemas.errors import UsageError
from schemas.positions import Lsn

START = Lsn(0x16_B374_D848)


def test_complete_start_command() -> None:
    assert start_command("s", "p", START, streaming=Streaming.PARALLEL, binary=True) == (
        b"""START_REPLICATION SLOT "s" LOGICAL 16/B374D848 (proto_version '4', publication_names '"p"', """
        b"""messages 'true', streaming 'parallel', binary 'true')"""
    )


@pytest.mark.parametrize(
    ("streaming", "version"), [(Streaming.OFF, b"1"), (Streaming.ON, b"2"), (Streaming.PARALLEL, b"4")]
)
def test_lowest_supporting_protocol_version_is_used(streaming: Streaming, version: bytes) -> None:
    assert b"proto_version '" + version in start_command("s", "p", START, streaming=streaming)


@pytest.mark.parametrize(
    ("streaming", "version"),
    [(Streaming.ON, 1), (Streaming.PARALLEL, 3), (Streaming.OFF, 0), (Streaming.OFF, 5)],
)
def test_unsupporting_protocol_version_is_refused(streaming: Streaming, version: int) -> None:
    with pytest.raises(UsageError, match=f"protocol version {version} does not support streaming = {streaming}"):
        start_command("s", "p", START, version=version, streaming=streaming)


@pytest.mark.parametrize(
    "slot", ["", "S", "a-b", 'a"b', "a'b", "a b", "ä", "a\n", "a\0b", "a" * 64, '"; DROP_REPLICATION_SLOT "x']
)
def test_invalid_slot_name_is_refused_in_command(slot: str) -> None:
    with pytest.raises(UsageError, match="is not a valid slot name"):
        start_command(slot, "p", START)


def test_a_publication_is_quoted_twice() -> None:
    assert b"""publication_names '"it''s ""x"", y"'""" in start_command("s", 'it\'s "x", y', START)
    with pytest.raises(UsageError, match="NUL"):
        start_command("s", "a\0b", START)


@pytest.mark.parametrize(
    ("text", "mark", "quoted"), [("a", '"', '"a"'), ('"', '"', '""""'), ("'", '"', '"\'"'), ("", "'", "''")]
)
def test_quote_doubles_inner_marks(text: str, mark: str, quoted: str) -> None:
    assert quote(text, mark) == quoted


def test_address_has_replication_settings() -> None:
    given = "postgresql://me:secret@host:1/db?options=-c%20logical_decoding_work_mem%3D64kB&connect_timeout=3"
    made = conninfo_to_dict(for_replication(given, "headrace main").dsn)
    assert made["replication"] == "database"
    assert made["client_encoding"] == "UTF8"
    assert made["application_name"] == "headrace main"
    assert made["options"] == "-c logical_decoding_work_mem=64kB"
    assert made["connect_timeout"] == "3"
    assert made["password"] == "secret"


def test_invalid_dsn_is_not_shown() -> None:
    with pytest.raises(UsageError) as caught:
        for_replication("postgresql://me:secret@host:1/db?nonsense=1")
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__
